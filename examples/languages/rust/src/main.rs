//! An agent for the Spinal bus, with the operations of its conformance kit.

mod agent;
mod events;
mod ops;
mod stream;

use std::{env, error::Error, fmt::Display, fs, io, process::ExitCode, time::Duration};

use futures::{SinkExt, StreamExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_xmpp::jid::{BareJid, Jid};
use tokio_xmpp::parsers::{iq::Iq, ping::Ping, presence::Presence, stanza::Stanza};
use tokio_xmpp::xmlstream::ReadError;

use agent::Agent;
use stream::Stream;

const SETUP: Duration = Duration::from_secs(30);
const WRITE: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Err(why) = run().await else {
        return ExitCode::SUCCESS;
    };
    eprintln!("error: {why}");
    ExitCode::FAILURE
}

/// What this reads in a variable.
fn variable<T, E: Display>(name: &str, read: fn(String) -> Result<T, E>) -> Result<T, String> {
    let value = env::var(name).map_err(|why| format!("{name}: {why}"))?;
    read(value).map_err(|why| format!("{name}: {why}"))
}

/// Keep the agent on the bus until it has drained.
async fn run() -> Result<(), Box<dyn Error>> {
    let address = variable("SPINAL_ADDRESS", |text| BareJid::new(&text))?;
    let password = variable("SPINAL_PASSWORD_FILE", fs::read_to_string)?;
    let server = variable("SPINAL_SERVER", Ok::<_, io::Error>)?;
    let server = server.split(' ').next().unwrap_or_default();
    let tls = variable("SPINAL_CA", stream::trust)?;
    let dispatchers =
        variable("SPINAL_DISPATCHER", |text| text.split_whitespace().map(Jid::new).collect())?;
    let mut stop = signal(SignalKind::terminate())?;
    let (said, mut heard) = unbounded_channel();
    let mut agent = Agent::new(address.clone(), dispatchers, said);
    let mut pause = 1.0;
    loop {
        let began = Instant::now();
        let connecting = stream::connect(&address, password.trim_end(), server, &tls);
        let end = match timeout(SETUP, connecting).await {
            Ok(Ok(stream)) => live(stream, &mut agent, &mut heard, &mut stop).await,
            Ok(Err(why)) => Err(why),
            Err(late) => Err(io::Error::from(late).into()),
        };
        match end {
            Ok(()) => return Ok(()),
            Err(why @ tokio_xmpp::Error::Auth(_)) => return Err(why.into()),
            Err(why) => eprintln!("{why}; trying again"),
        }
        tokio::select! {
            _ = sleep(Duration::from_secs_f64(pause * rand::random_range(0.5..1.0))) => (),
            _ = stop.recv() => return Ok(()),
        }
        pause = if began.elapsed() > 2 * SETUP { 1.0 } else { f64::min(pause * 2.0, 30.0) };
    }
}

/// Be there until the stream breaks (an error) or the agent has drained.
async fn live(
    mut stream: Stream,
    agent: &mut Agent,
    said: &mut UnboundedReceiver<Stanza>,
    stop: &mut Signal,
) -> Result<(), tokio_xmpp::Error> {
    // A jitter: agents that start together do not advertise together.
    let mut ticks = interval(Duration::from_millis(rand::random_range(1000..1100)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    stream.send(&Presence::available()).await?;
    agent.online();
    while !(agent.draining && agent.busy() == 0 && said.is_empty()) {
        tokio::select! {
            // Nothing is read while something is to be said: so that is bounded by what came.
            biased;
            Some(stanza) = said.recv() => {
                timeout(WRITE, stream.send(&stanza)).await.map_err(io::Error::from)??;
            }
            _ = stop.recv() => agent.draining = true,
            _ = ticks.tick() => agent.tick(),
            read = stream.next() => match read {
                Some(Ok(stanza)) => agent.take(stanza),
                // What is no IQ and no presence.
                Some(Err(ReadError::ParseError(_))) => (),
                Some(Err(ReadError::SoftTimeout)) => stream.send(&Iq::from_get("ping", Ping)).await?,
                Some(Err(ReadError::HardError(why))) => return Err(why.into()),
                _ => return Err(tokio_xmpp::Error::Disconnected),
            },
        }
    }
    stream.send(&Presence::unavailable()).await?;
    Ok(stream.shutdown().await?)
}

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
use stream::{Account, connect, trust};

/// For a login, for a write, and between two attempts.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Err(why) = run().await else { return ExitCode::SUCCESS };
    eprintln!("error: {why}");
    ExitCode::FAILURE
}

/// What is read in a variable.
fn variable<T, E: Display>(name: &str, read: fn(String) -> Result<T, E>) -> Result<T, String> {
    let value = env::var(name).map_err(|why| format!("{name}: {why}"))?;
    read(value).map_err(|why| format!("{name}: {why}"))
}

/// Keep the agent on the bus until it has drained.
async fn run() -> Result<(), Box<dyn Error>> {
    let account = Account {
        address: variable("SPINAL_ADDRESS", |text| BareJid::new(&text))?,
        password: variable("SPINAL_PASSWORD_FILE", fs::read_to_string)?.trim_end().to_owned(),
        server: variable("SPINAL_SERVER", |all| {
            all.split(' ').next().map(str::to_owned).ok_or("")
        })?,
        tls: variable("SPINAL_CA", trust)?,
    };
    let dispatchers =
        variable("SPINAL_DISPATCHER", |all| all.split_whitespace().map(Jid::new).collect())?;
    let mut stop = signal(SignalKind::terminate())?;
    let (said, mut heard) = unbounded_channel();
    let mut agent = Agent::new(account.address.domain().as_str(), dispatchers, said);
    let mut pause = 1.0;
    loop {
        let began = Instant::now();
        match live(&account, &mut agent, &mut heard, &mut stop).await {
            Ok(()) => return Ok(()),
            Err(why @ tokio_xmpp::Error::Auth(_)) => return Err(why.into()),
            Err(why) => eprintln!("{why}; trying again"),
        }
        tokio::select! {
            _ = sleep(Duration::from_secs_f64(pause * rand::random_range(0.5..1.0))) => (),
            _ = stop.recv() => return Ok(()),
        }
        pause = if began.elapsed() > 2 * PATIENCE { 1.0 } else { f64::min(pause * 2.0, 30.0) };
    }
}

/// Be there until the stream breaks (an error) or the agent has drained.
async fn live(
    account: &Account,
    agent: &mut Agent,
    said: &mut UnboundedReceiver<Stanza>,
    stop: &mut Signal,
) -> Result<(), tokio_xmpp::Error> {
    let mut stream = timeout(PATIENCE, connect(account)).await.map_err(io::Error::from)??;
    stream.send(&Presence::available()).await?;
    agent.online();
    // A jitter: agents that start together do not advertise together.
    let mut ticks = interval(Duration::from_millis(rand::random_range(1000..1100)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !(agent.draining && agent.busy() == 0 && said.is_empty()) {
        tokio::select! {
            // Nothing is read while there is something to say, so there is never much of it.
            biased;
            Some(stanza) = said.recv() => {
                timeout(PATIENCE, stream.send(&stanza)).await.map_err(io::Error::from)??;
            }
            _ = stop.recv() => agent.draining = true,
            _ = ticks.tick() => agent.tick(),
            read = stream.next() => match read {
                Some(Ok(stanza)) => agent.take(stanza),
                // One that lacks what every stanza has.
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

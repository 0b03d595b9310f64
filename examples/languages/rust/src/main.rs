//! An agent for the Spinal bus, with the operations of its conformance kit.

mod agent;
mod events;
mod ops;
mod stream;

use std::{env, error::Error, fs, process::ExitCode, time::Duration};

use futures::{SinkExt, StreamExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_xmpp::error::AuthError;
use tokio_xmpp::jid::Jid;
use tokio_xmpp::minidom::Element;
use tokio_xmpp::parsers::sasl::DefinedCondition::TemporaryAuthFailure;
use tokio_xmpp::parsers::{iq::Iq, ns, ping::Ping, presence::Presence, stanza::Stanza as Outgoing};
use tokio_xmpp::xmlstream::ReadError;

use agent::Agent;
use stream::{Account, Stanza, Stream, connect, trust};

type Outcome = Result<(), Box<dyn Error>>;

const SETUP: Duration = Duration::from_secs(30);
const WRITE: Duration = Duration::from_secs(10);
const CONFLICT: &str = "the server ended the stream: conflict";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Err(why) = run().await else {
        return ExitCode::SUCCESS;
    };
    eprintln!("error: {why}");
    ExitCode::FAILURE
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("{name} is not set"))
}

fn account() -> Result<Account, Box<dyn Error>> {
    let file = variable("SPINAL_PASSWORD_FILE")?;
    let password = fs::read_to_string(&file).map_err(|why| format!("{file}: {why}"))?;
    let ca = variable("SPINAL_CA")?;
    Ok(Account {
        address: variable("SPINAL_ADDRESS")?.parse()?,
        password: password.lines().next().unwrap_or_default().to_owned(),
        server: variable("SPINAL_SERVER")?
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned(),
        tls: trust(&ca).map_err(|why| format!("{ca}: {why}"))?,
    })
}

/// Keep the agent on the bus until it has drained.
async fn run() -> Outcome {
    let account = account()?;
    let dispatchers = variable("SPINAL_DISPATCHER")?;
    let dispatchers = dispatchers
        .split_whitespace()
        .map(Jid::new)
        .collect::<Result<_, _>>()?;
    let mut stop = signal(SignalKind::terminate())?;
    let mut agent = Agent::new(account.address.clone(), dispatchers);
    let mut pause = 1.0;
    loop {
        let why = match timeout(SETUP, connect(&account)).await {
            Ok(Ok(mut stream)) => {
                pause = 1.0;
                match live(&mut stream, &mut agent, &mut stop).await {
                    Ok(()) => return Ok(()),
                    // Two that come back would throw each other out for ever.
                    Err(why) if why.to_string() == CONFLICT => return Err(why),
                    Err(why) => why,
                }
            }
            Ok(Err(tokio_xmpp::Error::Auth(why)))
                if !matches!(why, AuthError::Fail(TemporaryAuthFailure)) =>
            {
                return Err(format!("the login was refused: {why}").into());
            }
            Ok(Err(why)) => why.into(),
            Err(_) => "the server does not answer".into(),
        };
        eprintln!("{why}; trying again");
        tokio::select! {
            _ = sleep(Duration::from_secs_f64(pause * rand::random_range(0.5..1.0))) => (),
            _ = stop.recv() => return Ok(()),
        }
        pause = f64::min(pause * 2.0, 30.0);
    }
}

/// Be there until the stream breaks (an error) or the agent has drained.
async fn live(stream: &mut Stream, agent: &mut Agent, stop: &mut Signal) -> Outcome {
    // A jitter: agents that start together do not advertise together.
    let mut ticks = interval(Duration::from_millis(rand::random_range(1000..1100)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    agent.online();
    while !(agent.draining && agent.running.is_empty()) {
        send(stream, agent).await?;
        tokio::select! {
            // What an operation told goes out before its end does.
            biased;
            Some(message) = agent.told.recv() => agent.out.push(message),
            Some(task) = agent.running.join_next() => agent.ended(task),
            _ = stop.recv() => agent.draining = true,
            _ = ticks.tick() => agent.tick(),
            read = stream.next() => match read {
                Some(Ok(Stanza(error))) if error.is("error", ns::STREAM) => {
                    let why = error.children().next().map_or("nothing", Element::name);
                    return Err(format!("the server ended the stream: {why}").into());
                }
                Some(Ok(Stanza(stanza))) => agent.take(&stanza),
                Some(Err(ReadError::SoftTimeout)) => agent.out.push(Iq::from_get("ping", Ping).into()),
                Some(Err(why)) => return Err(why.into()),
                None => return Err("the stream ended".into()),
            },
        }
    }
    agent.out.push(Presence::unavailable().into());
    send(stream, agent).await?;
    // That the server may have closed first is as good.
    let _ = timeout(WRITE, SinkExt::<&Outgoing>::close(stream)).await;
    Ok(())
}

async fn send(stream: &mut Stream, agent: &mut Agent) -> Outcome {
    for stanza in agent.out.drain(..) {
        timeout(WRITE, stream.send(&stanza)).await??;
    }
    Ok(())
}

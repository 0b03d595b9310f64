//! An agent for the Spinal bus that offers the conformance operations of its protocol.

mod agent;
mod ops;
mod stream;
mod wire;

use std::{process::ExitCode, time::Duration};

use futures::{SinkExt, StreamExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_xmpp::error::AuthError;
use tokio_xmpp::parsers::sasl::DefinedCondition::TemporaryAuthFailure;
use tokio_xmpp::parsers::{iq::Iq, ping::Ping, presence::Presence};
use tokio_xmpp::{Error, Stanza as Outgoing, xmlstream::ReadError};

use agent::{Agent, Key, Said};
use stream::{Account, Stanza, Stream, connect, trust};

const RESOURCE: &str = "agent";
const CONFLICT: &str = "conflict";
const SETUP: Duration = Duration::from_secs(30);
const WRITE: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Err(why) = run().await else { return ExitCode::SUCCESS };
    eprintln!("error: {why}");
    ExitCode::FAILURE
}

fn variable(name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|_| format!("{name} is not set"))
}

fn account() -> Result<Account, String> {
    let address = variable("SPINAL_ADDRESS")?;
    let (user, domain) = address.split_once('@').ok_or("SPINAL_ADDRESS is not user@domain")?;
    let file = variable("SPINAL_PASSWORD_FILE")?;
    let password = std::fs::read_to_string(&file).map_err(|why| format!("{file}: {why}"))?;
    let ca = variable("SPINAL_CA")?;
    Ok(Account {
        user: user.to_owned(),
        domain: domain.to_owned(),
        password: password.trim_end().to_owned(),
        server: variable("SPINAL_SERVER")?,
        tls: trust(&ca).map_err(|why| format!("{ca}: {why}"))?,
    })
}

/// Keep the agent on the bus until it has drained.
async fn run() -> Result<(), String> {
    let account = account()?;
    let dispatchers = variable("SPINAL_DISPATCHER")?.split_whitespace().map(str::to_owned).collect();
    let mut stop = signal(SignalKind::terminate()).map_err(|why| why.to_string())?;
    let (said, mut heard) = channel(100);
    let mut agent = Agent::new(&account.domain, dispatchers, said);
    let mut pause = 1.0;
    loop {
        let opened = tokio::select! {
            opened = timeout(SETUP, connect(&account, RESOURCE)) => opened,
            _ = stop.recv() => return Ok(()),
        };
        let why = match opened {
            Ok(Ok((mut stream, address))) => {
                pause = 1.0;
                match live(&mut stream, &address, &mut agent, &mut heard, &mut stop).await {
                    Ok(()) => return Ok(()),
                    Err(why) if why == CONFLICT => return Err("another program took this address".into()),
                    Err(why) => why,
                }
            }
            Ok(Err(Error::Auth(why))) if !matches!(why, AuthError::Fail(TemporaryAuthFailure)) => {
                return Err(format!("the login was refused: {why}"));
            }
            Ok(Err(why)) => why.to_string(),
            Err(_) => "the server does not answer".into(),
        };
        let drawn = Duration::from_secs_f64(pause * rand::random_range(0.5..1.0));
        eprintln!("error: {why}; trying again in {drawn:.1?}");
        tokio::select! {
            _ = sleep(drawn) => (),
            _ = stop.recv() => return Ok(()),
        }
        pause = f64::min(pause * 2.0, 30.0);
    }
}

/// Be there until the stream breaks (an error) or the agent has drained.
async fn live(
    stream: &mut Stream,
    address: &str,
    agent: &mut Agent,
    heard: &mut Receiver<(Key, Said)>,
    stop: &mut Signal,
) -> Result<(), String> {
    // A jitter of up to a tenth: agents that start together do not advertise together.
    let mut ticks = interval(Duration::from_millis(rand::random_range(1000..1100)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    agent.online();
    send(stream, agent).await?;
    println!("online {address}");
    while !agent.drained() {
        tokio::select! {
            read = stream.next() => match read {
                Some(Ok(Stanza { name, text, .. })) if name == "error" => return Err(text.unwrap_or(Ok(name))?),
                Some(Ok(stanza)) => agent.take(stanza),
                Some(Err(ReadError::SoftTimeout)) => agent.out.push(Iq::from_get("ping", Ping).into()),
                Some(Err(why)) => return Err(why.to_string()),
                None => return Err("the stream ended".into()),
            },
            Some((key, said)) = heard.recv() => agent.hear(key, said),
            _ = ticks.tick() => agent.tick(),
            _ = stop.recv() => {
                agent.draining = true;
                agent.tick();
            }
        }
        send(stream, agent).await?;
    }
    agent.out.push(Presence::unavailable().into());
    send(stream, agent).await?;
    // That the server may have closed first is as good.
    let _ = timeout(WRITE, SinkExt::<&Outgoing>::close(stream)).await;
    Ok(())
}

async fn send(stream: &mut Stream, agent: &mut Agent) -> Result<(), String> {
    for stanza in agent.out.drain(..) {
        let sent = timeout(WRITE, stream.send(&stanza)).await;
        sent.map_err(|_| "the server reads nothing".to_owned())?.map_err(|why| why.to_string())?;
    }
    Ok(())
}

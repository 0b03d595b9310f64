//! One XMPP stream: STARTTLS against the given authority alone, SCRAM, one resource.
//!
//! This is below `tokio_xmpp::Client`, which resumes streams where the server can (a dead agent
//! would look alive) and drops stanzas that it cannot parse instead of answering them.

use std::{sync::Arc, time::Duration};

use futures::{SinkExt, StreamExt};
use rxml::{AttrMap, Event, QName};
use sasl::common::Credentials;
use tokio::{io::BufStream, net::TcpStream};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, pki_types};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_xmpp::parsers::{bind::BindQuery, iq::Iq, ns, starttls::Request};
use tokio_xmpp::xmlstream::{StreamHeader, Timeouts, XmlStream, initiate_stream};
use tokio_xmpp::{Error, client_login, error::ProtocolError};
use xso::{Context, FromEventsBuilder, FromXml, error::FromEventsError};

pub const SPINAL: &str = "urn:spinal:1";
const LONGEST: usize = 1_048_576;
const TIMEOUTS: Timeouts =
    Timeouts { read_timeout: Duration::from_secs(30), response_timeout: Duration::from_secs(15) };

pub type Stream = XmlStream<BufStream<TlsStream<TcpStream>>, Stanza>;

pub struct Account {
    pub user: String,
    pub domain: String,
    pub password: String,
    pub server: String,
    pub tls: Arc<ClientConfig>,
}

/// A TLS configuration that trusts the authorities in this PEM file and no others.
pub fn trust(file: &str) -> Result<Arc<ClientConfig>, Box<dyn std::error::Error>> {
    use pki_types::pem::PemObject;
    let mut roots = RootCertStore::empty();
    for certificate in pki_types::CertificateDer::pem_file_iter(file)? {
        roots.add(certificate?)?;
    }
    let config = ClientConfig::builder().with_root_certificates(roots);
    Ok(Arc::new(config.with_no_client_auth()))
}

/// Log in with this resource; gives the stream and the address that the server bound.
pub async fn connect(account: &Account, resource: &str) -> Result<(Stream, String), Error> {
    let to = || StreamHeader { to: Some(account.domain.as_str().into()), ..StreamHeader::default() };
    let socket = BufStream::new(TcpStream::connect(&account.server).await?);
    let opened = initiate_stream(socket, ns::JABBER_CLIENT, to(), TIMEOUTS).await?;
    let (_, mut plain) = opened.recv_features::<Stanza>().await?;
    plain.send(&Request).await?;
    if !matches!(plain.next().await, Some(Ok(answer)) if answer.name == "proceed") {
        return Err(ProtocolError::NoTls.into());
    }
    let name = pki_types::ServerName::try_from(account.domain.clone());
    let name = name.map_err(std::io::Error::other)?;
    let socket = plain.into_inner().into_inner();
    let socket = TlsConnector::from(account.tls.clone()).connect(name, socket).await?;

    let opened = initiate_stream(BufStream::new(socket), ns::JABBER_CLIENT, to(), TIMEOUTS).await?;
    let (features, stream) = opened.recv_features().await?;
    let mut offered = features.sasl_mechanisms;
    offered.retain(|mechanism| mechanism.starts_with("SCRAM-"));
    let secret = Credentials::default().with_username(&account.user).with_password(&account.password);
    let opened = client_login(stream, offered, secret).await?.send_header(to()).await?;

    let (_, mut stream) = opened.recv_features::<Stanza>().await?;
    let bind = BindQuery::new(Some(resource.to_owned()));
    stream.send(&Iq::from_set("bind", bind)).await?;
    match stream.next().await {
        Some(Ok(Stanza { text: Some(Ok(address)), .. })) => Ok((stream, address)),
        _ => Err(ProtocolError::InvalidBindResponse.into()),
    }
}

/// What this agent reads of a stanza: its head, and the text of the first `<x>`.
///
/// It is read flat and to a bound, because a peer may nest elements as deep as its server lets it.
#[derive(Debug, Default)]
pub struct Stanza {
    pub name: String,
    pub kind: String,
    pub from: Option<String>,
    pub id: String,
    /// The text of `<x>`, or why it cannot be read; the address that was bound; what a stream ended of.
    pub text: Option<Result<String, String>>,
}

#[derive(Default)]
pub struct Reader {
    stanza: Stanza,
    depth: usize,
    reading: Option<usize>,
}

impl FromXml for Stanza {
    type Builder = Reader;

    fn from_events((_, name): QName, attrs: AttrMap, _: &Context<'_>) -> Result<Reader, FromEventsError> {
        let get =
            |name| attrs.iter().find(|((_, key), _)| key.as_str() == name).map(|(_, value)| value.clone());
        let (kind, id) = (get("type").unwrap_or_default(), get("id").unwrap_or_default());
        let stanza = Stanza { name: name.to_string(), kind, from: get("from"), id, text: None };
        Ok(Reader { stanza, ..Reader::default() })
    }
}

impl FromEventsBuilder for Reader {
    type Output = Stanza;

    fn feed(&mut self, event: Event, _: &Context<'_>) -> Result<Option<Stanza>, xso::error::Error> {
        let text = &mut self.stanza.text;
        match event {
            Event::StartElement(_, (namespace, name), _) => {
                self.depth += 1;
                if self.reading.is_some() {
                    *text = Some(Err("<x> holds elements".to_owned()));
                } else if text.is_none() && self.stanza.name == "error" {
                    *text = Some(Ok(name.to_string()));
                } else if text.is_none()
                    && (namespace == SPINAL && name == "x" && self.depth == 1
                        || namespace == ns::BIND && name == "jid")
                {
                    *text = Some(Ok(String::new()));
                    self.reading = Some(self.depth);
                }
            }
            Event::Text(_, more) if self.reading == Some(self.depth) => match text {
                Some(Ok(held)) if held.len() + more.len() > LONGEST => {
                    *text = Some(Err("the text of <x> is too long".to_owned()));
                }
                Some(Ok(held)) => held.push_str(&more),
                _ => (),
            },
            Event::EndElement(_) if self.depth == 0 => return Ok(Some(std::mem::take(&mut self.stanza))),
            Event::EndElement(_) => {
                self.reading = self.reading.filter(|depth| *depth < self.depth);
                self.depth -= 1;
            }
            _ => (),
        }
        Ok(None)
    }
}

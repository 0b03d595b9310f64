//! One XMPP stream: STARTTLS that trusts one authority alone, SCRAM, one resource.
//! README.md says why this is not left to `tokio_xmpp::Client`.

use std::{error, io, sync::Arc};

use futures::{SinkExt, StreamExt};
use sasl::common::Credentials;
use tokio::{io::BufStream, net::TcpStream};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_xmpp::jid::{BareJid, Jid};
use tokio_xmpp::parsers::{bind::BindQuery, iq::Iq, ns, starttls};
use tokio_xmpp::xmlstream::{StreamHeader, Timeouts, XmlStream, initiate_stream};
use tokio_xmpp::{Error, client_login, error::ProtocolError};
use xso::FromXml;

pub const SPINAL: &str = "urn:spinal:1";

pub type Stream = XmlStream<BufStream<TlsStream<TcpStream>>, Stanza>;

/// What this agent reads of a stanza. All else is dropped unseen, however deep it is nested.
#[derive(Debug, FromXml)]
#[xml(namespace = ns::JABBER_CLIENT)]
pub enum Stanza {
    #[xml(name = "iq", discard(text))]
    Iq {
        #[xml(attribute(default))]
        from: Option<Jid>,
        #[xml(attribute)]
        id: String,
        #[xml(attribute = "type")]
        kind: String,
        #[xml(child(n = ..))]
        x: Vec<X>,
    },
    #[xml(name = "message", discard(text))]
    Message {},
    #[xml(name = "presence", discard(text))]
    Presence {
        #[xml(attribute)]
        from: Jid,
        #[xml(child(n = ..))]
        x: Vec<X>,
    },
}

#[derive(Debug, FromXml)]
#[xml(namespace = SPINAL, name = "x")]
pub struct X(#[xml(text)] pub String);

pub struct Account {
    pub address: BareJid,
    pub password: String,
    pub server: String,
    pub tls: TlsConnector,
}

/// TLS that trusts the authorities in this PEM file and no others.
pub fn trust(file: String) -> Result<TlsConnector, Box<dyn error::Error>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file)? {
        roots.add(certificate?)?;
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(Arc::new(config).into())
}

/// Log in, with a resource.
pub async fn connect(account: &Account) -> Result<Stream, Error> {
    let domain = account.address.domain().as_str();
    let to = || StreamHeader { to: Some(domain.into()), ..StreamHeader::default() };
    let timeouts = Timeouts::tight();

    let socket = BufStream::new(TcpStream::connect(&account.server).await?);
    let opened = initiate_stream(socket, ns::JABBER_CLIENT, to(), timeouts).await?;
    let (_, mut plain) = opened.recv_features::<starttls::Proceed>().await?;
    plain.send(&starttls::Request).await?;
    let Some(Ok(starttls::Proceed)) = plain.next().await else {
        return Err(ProtocolError::NoTls.into());
    };
    let name = ServerName::try_from(domain.to_owned()).map_err(io::Error::other)?;
    let socket = plain.into_inner().into_inner();
    let socket = BufStream::new(account.tls.connect(name, socket).await?);

    let opened = initiate_stream(socket, ns::JABBER_CLIENT, to(), timeouts).await?;
    let (features, stream) = opened.recv_features().await?;
    let mut offered = features.sasl_mechanisms;
    offered.retain(|mechanism| mechanism.starts_with("SCRAM-"));
    let user = account.address.node().map_or("", |node| node.as_str());
    let login = Credentials::default().with_username(user).with_password(&account.password);
    let opened = client_login(stream, offered, login).await?.send_header(to()).await?;

    let (_, mut stream) = opened.recv_features::<Stanza>().await?;
    let bind = BindQuery::new(Some("agent".to_owned()));
    stream.send(&Iq::from_set("bind", bind)).await?;
    match stream.next().await {
        Some(Ok(Stanza::Iq { kind, .. })) if kind == "result" => Ok(stream),
        _ => Err(ProtocolError::InvalidBindResponse.into()),
    }
}

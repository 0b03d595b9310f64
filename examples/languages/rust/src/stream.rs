//! One XMPP stream: STARTTLS that trusts the given authority alone, SCRAM, one resource.
//!
//! README.md says why this does not leave it to `tokio_xmpp::Client`.

use std::{io, sync::Arc, time::Duration};

use futures::{SinkExt, StreamExt};
use rxml::{AttrMap, Event, QName};
use sasl::common::Credentials;
use tokio::{io::BufStream, net::TcpStream};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_xmpp::jid::BareJid;
use tokio_xmpp::minidom::Element;
use tokio_xmpp::parsers::{bind::BindQuery, iq::Iq, ns, starttls::Request};
use tokio_xmpp::xmlstream::{StreamHeader, Timeouts, XmlStream, initiate_stream};
use tokio_xmpp::{Error, client_login, error::ProtocolError};
use xso::{Context, FromEventsBuilder, FromXml, error::FromEventsError};

const RESOURCE: &str = "agent";
const LEVELS: usize = 8;
const TIMEOUTS: Timeouts = Timeouts {
    read_timeout: Duration::from_secs(30),
    response_timeout: Duration::from_secs(15),
};

pub type Stream = XmlStream<BufStream<TlsStream<TcpStream>>, Stanza>;

pub struct Account {
    pub address: BareJid,
    pub password: String,
    pub server: String,
    pub tls: TlsConnector,
}

/// TLS that trusts the authorities in this PEM file and no others.
pub fn trust(file: &str) -> Result<TlsConnector, Box<dyn std::error::Error>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file)? {
        roots.add(certificate?)?;
    }
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config).into())
}

pub async fn connect(account: &Account) -> Result<Stream, Error> {
    let domain = account.address.domain().as_str();
    let header = || StreamHeader {
        to: Some(domain.into()),
        ..StreamHeader::default()
    };
    let socket = BufStream::new(TcpStream::connect(&account.server).await?);
    let opened = initiate_stream(socket, ns::JABBER_CLIENT, header(), TIMEOUTS).await?;
    let (_, mut plain) = opened.recv_features::<Stanza>().await?;
    plain.send(&Request).await?;
    if !matches!(plain.next().await, Some(Ok(Stanza(answer))) if answer.is("proceed", ns::TLS)) {
        return Err(ProtocolError::NoTls.into());
    }
    let name = ServerName::try_from(domain.to_owned()).map_err(io::Error::other)?;
    let socket = account
        .tls
        .connect(name, plain.into_inner().into_inner())
        .await?;

    let opened = initiate_stream(
        BufStream::new(socket),
        ns::JABBER_CLIENT,
        header(),
        TIMEOUTS,
    )
    .await?;
    let (features, stream) = opened.recv_features().await?;
    let mut offered = features.sasl_mechanisms;
    offered.retain(|mechanism| mechanism.starts_with("SCRAM-"));
    let user = account.address.node().map_or("", |node| node.as_str());
    let secret = Credentials::default()
        .with_username(user)
        .with_password(&account.password);
    let opened = client_login(stream, offered, secret)
        .await?
        .send_header(header())
        .await?;

    let (_, mut stream) = opened.recv_features::<Stanza>().await?;
    stream
        .send(&Iq::from_set(
            "bind",
            BindQuery::new(Some(RESOURCE.to_owned())),
        ))
        .await?;
    match stream.next().await {
        Some(Ok(Stanza(answer))) if answer.attr("type") == Some("result") => Ok(stream),
        _ => Err(ProtocolError::InvalidBindResponse.into()),
    }
}

/// A stanza as a tree. What is nested deeper than anything this agent reads is left out of it,
/// because the tree is built recursively, and not every server bounds the levels.
#[derive(Debug)]
pub struct Stanza(pub Element);

pub struct Builder {
    tree: <Element as FromXml>::Builder,
    level: usize,
}

impl FromXml for Stanza {
    type Builder = Builder;

    fn from_events(
        name: QName,
        attrs: AttrMap,
        within: &Context<'_>,
    ) -> Result<Builder, FromEventsError> {
        Ok(Builder {
            tree: Element::from_events(name, attrs, within)?,
            level: 1,
        })
    }
}

impl FromEventsBuilder for Builder {
    type Output = Stanza;

    fn feed(
        &mut self,
        event: Event,
        within: &Context<'_>,
    ) -> Result<Option<Stanza>, xso::error::Error> {
        self.level += usize::from(matches!(event, Event::StartElement(..)));
        let level = self.level;
        self.level -= usize::from(matches!(event, Event::EndElement(..)));
        if level > LEVELS {
            return Ok(None);
        }
        Ok(self.tree.feed(event, within)?.map(Stanza))
    }
}

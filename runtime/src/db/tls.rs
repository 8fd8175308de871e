//! TLS to Postgres, as libpq names its parts in `DATABASE_URL` and `DATABASE_READ_URL`: `sslmode`, `sslrootcert`, `sslcert` and `sslkey`.
//!
//! - `disable`, and `prefer` (the default: TLS where the server offers it and it works).
//! - `require`: TLS, with whoever answers, unless `sslrootcert` is given.
//! - `verify-ca`: the server's certificate is of an authority in `sslrootcert`.
//! - `verify-full`: it is of the host in the URL as well, and the authority may be one of the system's.

use anyhow::{Context as _, ensure};
use deadpool_postgres::Connect;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config, Connection, Socket};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as RustlsStream;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// What the server's certificate has to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verify {
    Nothing,
    Authority,
    AuthorityAndHost,
}

/// The TLS options of a URL.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    /// If the URL has it. In the other form of a connection string it is tokio-postgres' to read.
    mode: Option<SslMode>,
    verify: Verify,
    root_certificates: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
}

/// Makes the TLS sessions of connections. Cheap to clone.
#[derive(Clone)]
pub(super) struct Tls(Arc<ClientConfig>);

/// Takes the TLS options out of a URL, since tokio-postgres knows few of them. Returns the rest, and whether TLS is asked for.
pub(super) fn without_options(variable: &str, url: &str) -> anyhow::Result<(String, Option<SslMode>)> {
    let (rest, options) = Options::take(url).with_context(|| variable.to_owned())?;
    Ok((rest, options.mode))
}

impl Tls {
    /// # Errors
    /// When an option is unknown, or a file can't be read.
    pub(super) fn of(variable: &str, url: &str) -> anyhow::Result<Self> {
        let config = Options::take(url).and_then(|(_, options)| options.client_config());
        Ok(Self(Arc::new(config.with_context(|| variable.to_owned())?)))
    }

    /// Opens a connection. With `prefer` one without TLS does where the server's fails, such as with a certificate of a kind that nobody
    /// takes any more.
    pub(super) async fn open(
        &self,
        host: &Config,
    ) -> Result<(Client, Connection<Socket, Encrypted<Socket>>), tokio_postgres::Error> {
        let outcome = host.connect(self.clone()).await;
        let fails = |error: &tokio_postgres::Error| error.to_string().starts_with("error performing TLS handshake");
        match outcome {
            Err(error) if host.get_ssl_mode() == SslMode::Prefer && fails(&error) => {
                tracing::debug!("a connection to Postgres is opened without TLS: {error}");
                // Its own error tells less.
                host.clone().ssl_mode(SslMode::Disable).connect(self.clone()).await.map_err(|other| match other.code() {
                    Some(_) => other,
                    None => error,
                })
            }
            outcome => outcome,
        }
    }
}

impl Connect for Tls {
    fn connect(&self, host: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), tokio_postgres::Error>> {
        let host = host.clone();
        async move {
            let (client, connection) = self.open(&host).await?;
            Ok((client, tokio::spawn(async move { drop(connection.await) })))
        }
        .boxed()
    }
}

impl Options {
    fn take(url: &str) -> anyhow::Result<(String, Self)> {
        let mut options = Self { mode: None, verify: Verify::Nothing, root_certificates: None, certificate: None, key: None };
        let mut mode = None;
        // A password may hold a question mark.
        let query = url.find('@').unwrap_or_default();
        let Some(query) = url[query..].find('?').map(|place| query + place) else { return Ok((url.to_owned(), options)) };
        let mut rest = Vec::new();
        for option in url[query + 1..].split('&') {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let value = percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned();
            match name {
                "sslmode" => mode = Some(value),
                "sslrootcert" => options.root_certificates = Some(value),
                "sslcert" => options.certificate = Some(value),
                "sslkey" => options.key = Some(value),
                _ => rest.push(option),
            }
        }
        // The system's authorities sign for anybody: as in libpq the name counts too.
        let is_system = options.root_certificates.as_deref() == Some("system");
        if let Some(mode) = mode.or_else(|| is_system.then(|| "verify-full".to_owned())) {
            let own_authority = options.root_certificates.is_some() && !is_system;
            ensure!(
                own_authority || !is_system && mode != "verify-ca" || ["verify-full", "disable"].contains(&mode.as_str()),
                "sslmode={mode} with the system's authorities believes any server that one of them has signed for; expected \
                 sslmode=verify-full, or sslrootcert with your own authority"
            );
            let (asked, verify) = match (mode.as_str(), &options.root_certificates) {
                ("disable", _) => (SslMode::Disable, Verify::Nothing),
                ("allow" | "prefer", _) => (SslMode::Prefer, Verify::Nothing),
                ("require", None) => (SslMode::Require, Verify::Nothing),
                ("require" | "verify-ca", _) => (SslMode::Require, Verify::Authority),
                ("verify-full", _) => (SslMode::Require, Verify::AuthorityAndHost),
                _ => anyhow::bail!("sslmode={mode}; expected disable, prefer, require, verify-ca or verify-full"),
            };
            (options.mode, options.verify) = (Some(asked), verify);
        }
        ensure!(
            options.certificate.is_some() == options.key.is_some(),
            "of sslcert and sslkey one is missing; expected both or none"
        );
        let mut without = url[..query].to_owned();
        if !rest.is_empty() {
            without = format!("{without}?{}", rest.join("&"));
        }
        Ok((without, options))
    }

    fn client_config(&self) -> anyhow::Result<ClientConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = match self.verify {
            Verify::Nothing => Arc::new(Lenient { provider: Arc::clone(&provider), authority: None }),
            verify => {
                let roots = Arc::new(roots(self.root_certificates.as_deref())?);
                let strict = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
                let strict = strict.context("sslrootcert")?;
                match verify {
                    Verify::AuthorityAndHost => strict,
                    _ => Arc::new(Lenient { provider: Arc::clone(&provider), authority: Some(strict) }),
                }
            }
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("the versions of TLS")?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let (Some(certificate), Some(key)) = (&self.certificate, &self.key) else { return Ok(builder.with_no_client_auth()) };
        let chain = certificates(certificate).with_context(|| format!("sslcert={certificate}"))?;
        let named = || format!("sslkey={key}");
        let key = PrivateKeyDer::from_pem_file(key).with_context(named)?;
        builder.with_client_auth_cert(chain, key).with_context(named)
    }
}

fn certificates(path: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?;
    ensure!(!all.is_empty(), "expected certificates in PEM");
    Ok(all)
}

/// The authorities of a file, or the system's.
fn roots(path: Option<&str>) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let Some(path) = path.filter(|path| *path != "system") else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    let named = || format!("sslrootcert={path}");
    for certificate in certificates(path).with_context(named)? {
        roots.add(certificate).with_context(named)?;
    }
    Ok(roots)
}

/// Asks for less than `verify-full`.
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    /// Asks for the authority, and here for nothing else.
    authority: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(authority) = &self.authority else { return Ok(ServerCertVerified::assertion()) };
        match authority.verify_server_cert(certificate, intermediates, host, ocsp, now) {
            // The name is looked at last.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            outcome => outcome,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether a connection failed since server and client do not agree about TLS, which no retry mends.
pub fn refuses_tls(error: &tokio_postgres::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    while let Some(error) = cause {
        if error.to_string() == "server does not support TLS" || is_refusal(error) {
            return true;
        }
        cause = error.source();
    }
    false
}

fn is_refusal(error: &(dyn Error + 'static)) -> bool {
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    let rustls = inner.map_or_else(|| error.downcast_ref(), |inner| inner.downcast_ref::<rustls::Error>());
    matches!(rustls, Some(rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_)))
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for Tls {
    type Stream = Encrypted<S>;
    type TlsConnect = Handshake;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Handshake> {
        // A Unix socket has no host, and no TLS.
        let host = ServerName::try_from(host.to_owned()).ok();
        Ok(Handshake { config: Arc::clone(&self.0), host })
    }
}

/// A session to be opened.
pub(super) struct Handshake {
    config: Arc<ClientConfig>,
    host: Option<ServerName<'static>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for Handshake {
    type Stream = Encrypted<S>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Encrypted<S>>>;

    fn connect(self, stream: S) -> Self::Future {
        async move {
            let host = self.host.ok_or_else(|| io::Error::other("the host in the URL is neither a name nor an address"))?;
            TlsConnector::from(self.config).connect(host, stream).await.map(Encrypted)
        }
        .boxed()
    }
}

/// An open session.
pub(super) struct Encrypted<S>(RustlsStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Encrypted<S> {
    /// None: the certificate tells who the server is.
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Encrypted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Encrypted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

//! TLS and logins against servers that speak as much as that takes: who is believed, who is not, and what the error says.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use clap::{CommandFactory as _, FromArgMatches as _, Parser};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use runtime::db::{Primary, refuses_tls};
use runtime::kafka::{self, Unusable};
use runtime::{Registry, RegistryError, Settings};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

/// Settings from flags, as `ctrip` makes them.
fn settings(arguments: &[&str]) -> Settings {
    let matches = Cli::command().get_matches_from(std::iter::once(&"ctrip").chain(arguments));
    let mut settings = Cli::from_arg_matches(&matches).unwrap().settings;
    settings.complete(&matches).unwrap();
    settings
}

/// An authority, in a file that goes with it.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        // OpenSSL takes a certificate whose issuer has its name for one that has signed itself.
        authority.distinguished_name.push(DnType::CommonName, name);
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = authority.clone().self_signed(&key).unwrap().pem();
        let file = std::env::temp_dir().join(format!("ctrip-{name}-{}.pem", std::process::id()));
        std::fs::write(&file, pem).unwrap();
        Self { issuer: Issuer::new(authority, key), file }
    }

    fn path(&self) -> &str {
        self.file.to_str().unwrap()
    }

    /// What a server of this host shows.
    fn acceptor(&self, host: &str, is_expired: bool) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        if is_expired {
            params.not_after = date_time_ymd(2001, 1, 1);
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key);
        TlsAcceptor::from(Arc::new(config.unwrap()))
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Serves every connection of a port.
async fn serve<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// What Postgres says to a wrong password.
async fn refuse(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    stream.read_u8().await?;
    let fields = b"SFATAL\0C28P01\0Mwrong password\0\0";
    stream.write_u8(b'E').await?;
    stream.write_u32(u32::try_from(fields.len() + 4).unwrap()).await?;
    stream.write_all(fields).await?;
    stream.shutdown().await
}

/// A Postgres that lets nobody in: whoever gets as far has agreed about TLS.
async fn postgres(tls: Option<TlsAcceptor>) -> SocketAddr {
    serve(move |mut stream| {
        let tls = tls.clone();
        async move {
            let mut asked = [0; 8];
            stream.read_exact(&mut asked).await?;
            if asked[4..] != 80_877_103_u32.to_be_bytes() {
                return refuse(stream).await;
            }
            stream.write_u8(if tls.is_some() { b'S' } else { b'N' }).await?;
            match tls {
                Some(tls) => refuse(tls.accept(stream).await?).await,
                None => refuse(stream).await,
            }
        }
    })
    .await
}

/// It offers TLS, and then speaks none.
async fn postgres_with_broken_tls() -> SocketAddr {
    serve(|mut stream| async move {
        let mut asked = [0; 8];
        stream.read_exact(&mut asked).await?;
        if asked[4..] != 80_877_103_u32.to_be_bytes() {
            return refuse(stream).await;
        }
        stream.write_all(b"SHTTP/1.1 400 Bad Request\r\n\r\n").await?;
        stream.shutdown().await
    })
    .await
}

/// Whether a connection is made with these options, or refused for the sake of TLS.
async fn is_made(server: SocketAddr, host: &str, options: &str) -> bool {
    let url = format!("postgres://ctrip:hunter2@{host}:{}/ctrip?{options}", server.port());
    let error = Primary::of(&url).unwrap().open().await.map(drop).unwrap_err();
    let is_made = error.code().is_some_and(|code| code.code() == "28P01");
    assert_ne!(is_made, refuses_tls(&error), "{options}: {error:?}");
    is_made
}

#[tokio::test]
async fn postgres_is_believed_as_far_as_sslmode_asks() {
    let (ours, other) = (Authority::new("pg-ours"), Authority::new("pg-other"));
    let server = postgres(Some(ours.acceptor("localhost", false))).await;
    let with = |mode: &str, authority: &Authority| format!("sslmode={mode}&sslrootcert={}", authority.path());
    for (host, options, expected) in [
        ("localhost", "sslmode=disable".to_owned(), true),
        ("localhost", "sslmode=prefer".to_owned(), true),
        ("127.0.0.1", "sslmode=require".to_owned(), true),
        ("127.0.0.1", with("require", &ours), true),
        ("127.0.0.1", with("require", &other), false),
        ("127.0.0.1", with("verify-ca", &ours), true),
        ("localhost", with("verify-ca", &other), false),
        ("localhost", with("verify-full", &ours), true),
        ("127.0.0.1", with("verify-full", &ours), false),
        ("localhost", with("verify-full", &other), false),
        // The system's authorities have not signed it.
        ("localhost", "sslmode=verify-full".to_owned(), false),
        ("localhost", "sslrootcert=system".to_owned(), false),
    ] {
        assert_eq!(is_made(server, host, &options).await, expected, "{host} {options}");
    }
    let expired = postgres(Some(ours.acceptor("localhost", true))).await;
    assert!(!is_made(expired, "localhost", &with("verify-full", &ours)).await);
    let plain = postgres(None).await;
    assert!(is_made(plain, "localhost", "sslmode=prefer").await && !is_made(plain, "localhost", "sslmode=require").await);
}

#[tokio::test]
async fn a_server_whose_tls_fails_is_used_without_it_unless_it_is_asked_for() {
    let server = postgres_with_broken_tls().await;
    for (options, is_made) in [("connect_timeout=7", true), ("sslmode=prefer", true), ("sslmode=require", false)] {
        let url = format!("postgres://ctrip:hunter2@localhost:{}/ctrip?{options}", server.port());
        let error = Primary::of(&url).unwrap().open().await.map(drop).unwrap_err();
        assert_eq!(error.code().is_some_and(|code| code.code() == "28P01"), is_made, "{options}: {error:?}");
    }
}

#[test]
fn options_of_tls_that_can_not_be_meant_are_refused_without_the_password() {
    for (options, named) in [
        ("sslmode=verify_full", "verify-full"),
        ("sslmode=verify-full&sslrootcert=/nowhere", "sslrootcert=/nowhere"),
        ("sslmode=verify-ca", "expected sslmode=verify-full"),
        ("sslmode=verify-ca&sslrootcert=system", "expected sslmode=verify-full"),
        ("sslmode=require&sslrootcert=system", "expected sslmode=verify-full"),
        ("sslmode=prefer&sslrootcert=system", "expected sslmode=verify-full"),
        ("sslcert=/nowhere", "sslkey"),
        ("sslcert=/nowhere&sslkey=/nowhere", "sslcert=/nowhere"),
    ] {
        let refused = format!("{:#}", Primary::of(&format!("postgres://u:hunter2@localhost/d?{options}")).unwrap_err());
        assert!(refused.contains(named) && !refused.contains("hunter2"), "{refused}");
    }
}

/// Speaks TLS, and to nobody.
async fn tls_port(tls: TlsAcceptor) -> SocketAddr {
    serve(move |stream| {
        let tls = tls.clone();
        async move {
            let mut stream = tls.accept(stream).await?;
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_whose_certificate_does_not_convince_is_refused_at_once() {
    let (ours, other) = (Authority::new("kafka-ours"), Authority::new("kafka-other"));
    let probe = async |broker: SocketAddr, protocol: &str, authority: Option<&Authority>| {
        let brokers = format!("localhost:{}", broker.port());
        let mut flags = vec!["--kafka-brokers", &brokers, "--kafka-security-protocol", protocol];
        flags.extend(authority.into_iter().flat_map(|authority| ["--kafka-ssl-ca-location", authority.path()]));
        kafka::probe(&settings(&flags)).await.unwrap_err()
    };
    let server = tls_port(ours.acceptor("localhost", false)).await;
    let expired = tls_port(ours.acceptor("localhost", true)).await;
    let elsewhere = tls_port(ours.acceptor("elsewhere", false)).await;
    let plain = serve(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await?;
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await?;
        stream.shutdown().await
    })
    .await;
    for (broker, authority, cause) in [
        (server, &other, "certificate verify failed"),
        (expired, &ours, "certificate verify failed"),
        (elsewhere, &ours, "certificate verify failed"),
        (plain, &ours, "wrong version number"),
    ] {
        let error = match probe(broker, "ssl", Some(authority)).await {
            Unusable::Refused(error) => format!("{error:#}"),
            Unusable::Unreachable(told) => panic!("{cause}: waited for after {told}"),
        };
        assert!(error.contains("KAFKA_SSL_CA_LOCATION") && error.contains(cause), "{error}");
    }
    // Another one may answer yet.
    let (brokers, began) = (format!("localhost:{},localhost:{}", expired.port(), server.port()), Instant::now());
    let flags = ["--kafka-brokers", &brokers, "--kafka-security-protocol", "ssl", "--kafka-ssl-ca-location", ours.path()];
    let refused = kafka::probe(&settings(&flags)).await.unwrap_err();
    assert!(matches!(refused, Unusable::Refused(_)) && began.elapsed() > Duration::from_secs(3), "{refused:?}");
    // It has agreed about TLS, and says nothing more.
    let silent = probe(server, "ssl", Some(&ours)).await;
    assert!(matches!(silent, Unusable::Unreachable(_)), "{silent:?}");
    // A port that hangs up may be of a broker that is starting; the cause is told meanwhile.
    let Unusable::Unreachable(cause) = probe(server, "plaintext", None).await else { panic!("refused") };
    assert!(cause.contains("KAFKA_SECURITY_PROTOCOL"), "{cause}");
}

#[tokio::test]
async fn a_registry_is_believed_by_the_authority_that_is_named_and_its_refusal_is_final() {
    let (ours, other) = (Authority::new("registry-ours"), Authority::new("registry-other"));
    let tls = ours.acceptor("localhost", false);
    let server = serve(move |stream| {
        let tls = tls.clone();
        async move {
            let mut stream = tls.accept(stream).await?;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            stream.write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}").await?;
            stream.shutdown().await
        }
    })
    .await;
    let url = format!("https://localhost:{}", server.port());
    let ping = async |authority: Option<&Authority>| {
        let mut flags = vec!["--schema-registry-url", &url];
        flags.extend(authority.into_iter().flat_map(|authority| ["--schema-registry-ca-location", authority.path()]));
        match Registry::new(&settings(&flags)).unwrap().ping().await {
            Err(RegistryError::Permanent(error)) => error,
            outcome => panic!("{outcome:?}"),
        }
    };
    for stranger in [None, Some(&other)] {
        let error = ping(stranger).await;
        assert!(error.contains("SCHEMA_REGISTRY_CA_LOCATION"), "{error}");
    }
    let error = ping(Some(&ours)).await;
    assert!(error.contains("SCHEMA_REGISTRY_USERNAME") && error.contains("401"), "{error}");
}

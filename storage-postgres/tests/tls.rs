//! Each `sslmode` against a real server: one with a certificate, and one without TLS.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed};
use storage_core::{ErrorKind, Result, StorageBackend};
use storage_postgres::{PostgresBackend, PostgresOptions, SslMode};

#[path = "support/mod.rs"]
mod support;

use support::server::{Server, trial};

fn main() -> ExitCode {
    let trials = vec![
        trial("certificates_are_verified_as_the_mode_says", false, with_certificate),
        trial("without_tls_only_modes_that_do_not_ask_for_it_connect", false, without_tls),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

async fn connect(url: &str, mode: SslMode, root: Option<&Path>) -> Result<bool> {
    let mut options = PostgresOptions::from_url(url)?.ssl_mode(mode);
    if let Some(root) = root {
        options = options.ssl_root_cert(root);
    }
    let store = PostgresBackend::open(options).await?;
    store.stats().await?;
    store.close().await?;
    Ok(true)
}

/// A root of our own, and a certificate by it for `name`.
struct Certificates {
    root: PathBuf,
    other_root: PathBuf,
    certificate: String,
    key: String,
}

fn certificates(dir: &Path, name: &str) -> Certificates {
    let make_root = |file: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let path = dir.join(file);
        std::fs::write(&path, certificate.pem()).unwrap();
        (path, rcgen::Issuer::new(params, key))
    };
    let (root, issuer) = make_root("root.pem");
    let (other_root, _) = make_root("other.pem");
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    Certificates { root, other_root, certificate, key: key.serialize_pem() }
}

fn with_certificate() -> std::result::Result<(), Failed> {
    // Made once without, so that there is a directory for the certificate.
    let mut server = Server::start(&[]);
    server.stop("fast");
    let certificates = certificates(server.path(), "localhost");
    let (certificate, key) = (server.data().join("server.crt"), server.data().join("server.key"));
    std::fs::write(&certificate, &certificates.certificate).unwrap();
    std::fs::write(&key, &certificates.key).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&key, mode).unwrap();
    if let Some((user, group)) = support::server::user() {
        let owner = format!("{user}:{group}");
        let done = Command::new("chown").arg(owner).arg(&certificate).arg(&key).status();
        assert!(done.unwrap().success());
    }
    // Whoever comes without TLS is refused.
    let rules = "hostssl all all all scram-sha-256\nlocal all all scram-sha-256\n";
    std::fs::write(server.data().join("pg_hba.conf"), rules).unwrap();
    server.settings(&["ssl=on"]);
    server.start_again();
    let by_address = server.url.clone();
    let by_name = server.url.replacen("127.0.0.1", "localhost", 1);
    let (root, other) = (Some(&*certificates.root), Some(&*certificates.other_root));
    let accepted: Option<ErrorKind> = None;
    let table = [
        (&by_name, SslMode::Disable, None, Some(ErrorKind::PermissionDenied)),
        (&by_name, SslMode::Prefer, None, accepted),
        (&by_name, SslMode::Require, None, accepted),
        (&by_address, SslMode::Require, root, accepted),
        (&by_address, SslMode::Require, other, Some(ErrorKind::Config)),
        (&by_address, SslMode::VerifyCa, root, accepted),
        (&by_address, SslMode::VerifyCa, other, Some(ErrorKind::Config)),
        (&by_name, SslMode::VerifyFull, root, accepted),
        (&by_address, SslMode::VerifyFull, root, Some(ErrorKind::Config)),
        (&by_name, SslMode::VerifyFull, other, Some(ErrorKind::Config)),
    ];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (url, mode, root, expected) in table {
        let found = runtime.block_on(connect(url, mode, root)).err().map(|error| error.kind());
        assert_eq!(found, expected, "{mode:?} with {root:?}");
    }
    Ok(())
}

fn without_tls() -> std::result::Result<(), Failed> {
    let server = Server::start(&[]);
    let root = certificates(server.path(), "localhost").root;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (mode, root, expected) in [
        (SslMode::Disable, None, None),
        (SslMode::Prefer, None, None),
        (SslMode::Require, None, Some(ErrorKind::Config)),
        (SslMode::VerifyCa, Some(&*root), Some(ErrorKind::Config)),
        (SslMode::VerifyFull, Some(&*root), Some(ErrorKind::Config)),
    ] {
        let found = runtime.block_on(connect(&server.url, mode, root)).err().map(|e| e.kind());
        assert_eq!(found, expected, "{mode:?}");
    }
    Ok(())
}

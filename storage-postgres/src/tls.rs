//! What is verified of the server's certificate, by `sslmode`.
//!
//! The driver knows three modes; whether the certificate and the name in it are verified is
//! decided here.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore,
    SignatureScheme,
};
use storage_core::{Error, Result};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::{PostgresOptions, SslMode, config};

/// Returns what makes connections encrypted, as the options ask.
///
/// # Errors
/// `Config` if the root certificates cannot be read, or there are none.
pub(crate) fn connector(options: &PostgresOptions) -> Result<MakeRustlsConnect> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| config("TLS cannot be set up").with_source(error))?;
    let client = match checks(options) {
        Checks::Nothing => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
            .with_no_client_auth(),
        Checks::Issuer => {
            let verifier = WebPkiServerVerifier::builder_with_provider(roots(options)?, provider)
                .build()
                .map_err(|error| {
                    config("the root certificates are not usable").with_source(error)
                })?;
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyName(verifier)))
                .with_no_client_auth()
        }
        Checks::IssuerAndName => {
            builder.with_root_certificates(roots(options)?).with_no_client_auth()
        }
    };
    Ok(MakeRustlsConnect::new(client))
}

#[derive(Debug, PartialEq)]
enum Checks {
    Nothing,
    Issuer,
    IssuerAndName,
}

fn checks(options: &PostgresOptions) -> Checks {
    match options.ssl_mode {
        SslMode::VerifyFull => Checks::IssuerAndName,
        SslMode::VerifyCa => Checks::Issuer,
        // As of other clients: a root certificate that is given is meant.
        SslMode::Require if options.ssl_root_cert.is_some() => Checks::Issuer,
        SslMode::Disable | SslMode::Prefer | SslMode::Require => Checks::Nothing,
    }
}

fn roots(options: &PostgresOptions) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    match &options.ssl_root_cert {
        Some(path) => {
            let unreadable = |error: rustls::pki_types::pem::Error| {
                named(config("the root certificates cannot be read"), options).with_source(error)
            };
            for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
                roots.add(certificate.map_err(unreadable)?).map_err(|error| {
                    named(config("a root certificate is not usable"), options).with_source(error)
                })?;
            }
        }
        None => {
            // Odd certificates of a system are no reason not to trust the others.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    match roots.is_empty() {
        true => Err(named(config("there is no root certificate to trust"), options)),
        false => Ok(Arc::new(roots)),
    }
}

fn named(error: Error, options: &PostgresOptions) -> Error {
    match &options.ssl_root_cert {
        Some(path) => error.with_context("sslrootcert", path.display()),
        None => error,
    }
}

/// Accepts every certificate: encryption alone.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Verifies all but the name.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let verified =
            self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // The name is looked at last, when everything else is right.
            Err(TlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage_core::ErrorKind;

    fn options(mode: SslMode) -> PostgresOptions {
        PostgresOptions::from_url("postgres://me@db/app").unwrap().ssl_mode(mode)
    }

    #[test]
    fn each_mode_checks_what_its_name_says() {
        for (mode, expected) in [
            (SslMode::Disable, Checks::Nothing),
            (SslMode::Prefer, Checks::Nothing),
            (SslMode::Require, Checks::Nothing),
            (SslMode::VerifyCa, Checks::Issuer),
            (SslMode::VerifyFull, Checks::IssuerAndName),
        ] {
            assert_eq!(checks(&options(mode)), expected, "{mode:?}");
        }
        assert_eq!(checks(&options(SslMode::Require).ssl_root_cert("a.pem")), Checks::Issuer);
    }

    #[test]
    fn roots_that_are_none_are_refused() {
        let missing = options(SslMode::VerifyFull).ssl_root_cert("/nonexistent.pem");
        let error = connector(&missing).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert_eq!(error.context("sslrootcert"), Some("/nonexistent.pem"));
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        let error = connector(&options(SslMode::VerifyCa).ssl_root_cert(&empty)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Config);
    }
}

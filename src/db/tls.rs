//! TLS to PostgreSQL with the meaning that libpq gives to `sslmode` and `sslrootcert`.
//!
//! Source: <https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-PROTECTION>.

use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};

/// How much of the server's certificate is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// Nothing: the traffic is encrypted, to whomever.
    None,
    /// The chain up to a trusted root (`verify-ca`).
    Chain,
    /// The chain and the host's name (`verify-full`).
    ChainAndName,
}

/// A client configuration that verifies as asked, against `root_file` or, without one, the machine's own roots.
///
/// # Errors
/// Where the roots cannot be read.
pub fn client_config(verification: Verification, root_file: Option<&str>) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let chain = match verification {
        Verification::None => None,
        Verification::Chain | Verification::ChainAndName => Some(Chain::to(root_file, provider.clone())?),
    };
    let verifier = Verifier { provider, chain, is_name_verified: verification == Verification::ChainAndName };
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

/// Verifies that a certificate is trusted.
#[derive(Debug)]
struct Chain {
    trusted: Vec<CertificateDer<'static>>,
    verifier: Arc<WebPkiServerVerifier>,
}

impl Chain {
    fn to(root_file: Option<&str>, provider: Arc<CryptoProvider>) -> Result<Self> {
        let trusted = trusted(root_file)?;
        let mut roots = RootCertStore::empty();
        match root_file {
            // The machine's own have been seen to hold some that cannot be parsed.
            None | Some("system") => drop(roots.add_parsable_certificates(trusted.iter().cloned())),
            Some(file) => {
                for certificate in &trusted {
                    roots.add(certificate.clone()).with_context(|| format!("cannot use what is in {file:?}"))?;
                }
            }
        }
        anyhow::ensure!(!roots.is_empty(), "there is no root certificate to verify the server with");
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        Ok(Self { trusted, verifier })
    }

    /// Whether the error is none: the server shows a certificate that is itself among the trusted ones, as the one
    /// that `openssl req -x509` makes. webpki wants no authority's certificate from a server; OpenSSL, and so libpq,
    /// takes it. The dates are verified before this.
    fn is_trusted_itself(&self, certificate: &CertificateDer<'_>, error: &Error) -> bool {
        matches!(error, Error::InvalidCertificate(CertificateError::Other(OtherError(cause)))
            if cause.downcast_ref() == Some(&webpki::Error::CaUsedAsEndEntity))
            && self.trusted.iter().any(|trusted| trusted == certificate)
    }
}

fn trusted(file: Option<&str>) -> Result<Vec<CertificateDer<'static>>> {
    match file {
        Some(file) if file != "system" => CertificateDer::pem_file_iter(file)
            .and_then(Iterator::collect)
            .with_context(|| format!("sslrootcert: cannot read {file:?}")),
        _ => Ok(rustls_native_certs::load_native_certs().certs),
    }
}

/// Verifies as much as was asked for.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    chain: Option<Chain>,
    is_name_verified: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        match chain.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is checked last, so an error about it means that the chain was good; it is checked below.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {}
            Err(error) if chain.is_trusted_itself(end_entity, &error) => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        if self.is_name_verified {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

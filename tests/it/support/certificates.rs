//! Certificates for a PostgreSQL server, made in the test: good ones, and every kind of bad one.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;

/// What a server shows, as PEM.
pub struct Served {
    pub certificate: String,
    pub key: String,
}

/// An authority that signs certificates; its own one is in a file, for `sslrootcert`.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        // A name of its own: of two with one name, it would be the signature that is wrong.
        let name = format!("authority {}", uuid::Uuid::new_v4());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("root.crt"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    /// What clients are to trust.
    pub fn root_file(&self) -> PathBuf {
        self.folder.path().join("root.crt")
    }

    /// A certificate for a host of this name.
    pub fn certificate(&self, name: &str) -> Served {
        self.sign(CertificateParams::new([name.to_owned()]).unwrap())
    }

    /// A certificate for a host of this name that was good until 2020.
    pub fn expired(&self, name: &str) -> Served {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 1);
        self.sign(params)
    }

    /// A certificate as older ones are: the host's name is the subject's common name and nowhere else.
    pub fn common_name_alone(&self, name: &str) -> Served {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Served {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Served { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// A certificate that nobody but itself vouches for, as `openssl req -x509` makes it: it may sign others, too.
pub fn self_signed(name: &str) -> Served {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    Served { certificate: certificate.pem(), key: key.serialize_pem() }
}

impl Served {
    /// Writes the certificate to a file, for `sslrootcert`.
    pub fn write(&self, folder: &Path) -> PathBuf {
        let file = folder.join("server.crt");
        std::fs::write(&file, &self.certificate).unwrap();
        file
    }
}

//! TLS to the database: `sslmode` and `sslrootcert` mean what they mean to libpq, and a refusal says why.

use std::path::Path;

use diesel::sql_types::Bool;
use diesel_async::RunQueryDsl;
use subledger::db::connect::Target;

use crate::support::binary::{run, subledger, text};
use crate::support::certificates::{Authority, self_signed};
use crate::support::cluster::{Cluster, USER};

/// The URL of a cluster with a certificate, by the host's name that is asked for.
fn url(cluster: &Cluster, host: &str, options: &str) -> String {
    format!("postgres://{USER}:pass@{host}:{}/app?{options}", cluster.port)
}

fn with_root(mode: &str, root: &Path) -> String {
    format!("sslmode={mode}&sslrootcert={}", root.display())
}

/// Connects; says whether it is encrypted, or why it came to nothing.
async fn connect(url: &str) -> Result<bool, String> {
    #[derive(diesel::QueryableByName)]
    struct Session {
        #[diesel(sql_type = Bool)]
        ssl: bool,
    }
    let target = Target::parse(url).map_err(|error| format!("{error:#}"))?;
    let mut conn = target.connect().await.map_err(|error| error.to_string())?;
    let query = diesel::sql_query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()");
    Ok(query.get_result::<Session>(&mut conn).await.unwrap().ssl)
}

#[track_caller]
fn assert_refused(result: Result<bool, String>, reasons: &[&str]) {
    let error = result.expect_err("a refusal");
    assert!(!error.contains('\n') && !error.contains("pass@"), "{error}");
    for reason in reasons {
        assert!(error.contains(reason), "{reason:?} is not in {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_certificate_is_taken_in_every_mode_and_a_missing_or_wrong_one_in_none_that_verifies() {
    let (ours, other) = (Authority::new(), Authority::new());
    let cluster = Cluster::with_certificate(&ours.certificate("localhost")).await;
    let at = |host, options: &str| url(&cluster, host, options);
    let root = ours.root_file();
    for options in ["", "sslmode=allow", "sslmode=prefer", "sslmode=require"] {
        assert_eq!(connect(&at("localhost", options)).await, Ok(true), "{options}");
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        assert_eq!(connect(&at("localhost", &with_root(mode, &root))).await, Ok(true), "{mode}");
    }
    assert_refused(connect(&at("localhost", "sslmode=disable")).await, &["localhost", "pg_hba.conf", "no encryption"]);

    // Another name than the certificate's matters to verify-full alone.
    assert_eq!(connect(&at("127.0.0.1", &with_root("verify-ca", &root))).await, Ok(true));
    let misnamed = connect(&at("127.0.0.1", &with_root("verify-full", &root))).await;
    assert_refused(misnamed, &["127.0.0.1:", "not valid for name", "localhost"]);

    // Another authority than the certificate's matters to all that verify; with a file, to `require` also.
    for mode in ["require", "verify-ca", "verify-full"] {
        let untrusted = connect(&at("localhost", &with_root(mode, &other.root_file()))).await;
        assert_refused(untrusted, &["invalid peer certificate", "UnknownIssuer"]);
    }
    // The machine's own roots do not know it either.
    for options in ["sslmode=verify-full", "sslrootcert=system"] {
        assert_refused(connect(&at("localhost", options)).await, &["UnknownIssuer"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_refused_by_every_mode_that_verifies() {
    let authority = Authority::new();
    let cluster = Cluster::with_certificate(&authority.expired("localhost")).await;
    assert_eq!(connect(&url(&cluster, "localhost", "sslmode=require")).await, Ok(true));
    for mode in ["verify-ca", "verify-full"] {
        let expired = connect(&url(&cluster, "localhost", &with_root(mode, &authority.root_file()))).await;
        assert_refused(expired, &["localhost:", "certificate expired"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_self_signed_certificate_is_taken_unverified_or_as_its_own_root() {
    let served = self_signed("localhost");
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::with_certificate(&served).await;
    let root = served.write(folder.path());
    assert_eq!(connect(&url(&cluster, "127.0.0.1", "sslmode=require")).await, Ok(true));
    assert_eq!(connect(&url(&cluster, "127.0.0.1", &with_root("verify-ca", &root))).await, Ok(true));
    assert_eq!(connect(&url(&cluster, "localhost", &with_root("verify-full", &root))).await, Ok(true));
    let misnamed = connect(&url(&cluster, "127.0.0.1", &with_root("verify-full", &root))).await;
    assert_refused(misnamed, &["not valid for name"]);

    // Another one for the same name, that is as self-signed, is somebody else's.
    let other = tempfile::tempdir().unwrap();
    let root = self_signed("localhost").write(other.path());
    for mode in ["verify-ca", "verify-full"] {
        let refused = connect(&url(&cluster, "localhost", &with_root(mode, &root))).await;
        assert_refused(refused, &["invalid peer certificate"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_common_name_alone_is_trusted_but_is_no_host_s_name() {
    let authority = Authority::new();
    let cluster = Cluster::with_certificate(&authority.common_name_alone("localhost")).await;
    let root = authority.root_file();
    assert_eq!(connect(&url(&cluster, "localhost", &with_root("verify-ca", &root))).await, Ok(true));
    let misnamed = connect(&url(&cluster, "localhost", &with_root("verify-full", &root))).await;
    assert_refused(misnamed, &["not valid for name", "localhost"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tls_on_the_server_only_what_does_not_insist_connects() {
    let cluster = Cluster::start().await;
    for options in ["", "sslmode=disable", "sslmode=prefer"] {
        assert_eq!(connect(&url(&cluster, "localhost", options)).await, Ok(false), "{options}");
    }
    let insists = connect(&url(&cluster, "localhost", "sslmode=require")).await;
    assert_refused(insists, &["localhost:", "server does not support TLS"]);
    // A unix socket has no TLS and needs none, whatever the mode.
    let socket = format!("{}&sslmode=require", cluster.socket_url("app"));
    assert_eq!(connect(&socket).await, Ok(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_says_in_one_line_why_it_does_not_trust_the_server() {
    let (ours, other) = (Authority::new(), Authority::new());
    let cluster = Cluster::with_certificate(&ours.certificate("localhost")).await;
    let folder = tempfile::tempdir().unwrap();
    let migrate = |root: &Path| {
        let url = url(&cluster, "localhost", &with_root("verify-full", root));
        run(subledger(folder.path()).arg("migrate").env("DATABASE_URL", url))
    };
    let refused = migrate(&other.root_file());
    let error = text(&refused.stderr);
    assert_eq!((refused.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains("cannot reach the database") && error.contains("UnknownIssuer"), "{error}");
    assert!(!error.contains("pass"), "{error}");
    let taken = migrate(&ours.root_file());
    assert!(taken.status.success(), "{}", text(&taken.stderr));

    let missing = migrate(Path::new("/nonexistent.pem"));
    let error = text(&missing.stderr);
    assert_eq!((missing.status.code(), error.lines().count()), (Some(2), 1), "{error}");
    assert!(error.contains("DATABASE_URL: sslrootcert") && error.contains("/nonexistent.pem"), "{error}");
}

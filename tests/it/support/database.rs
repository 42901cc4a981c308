//! A database of its own for each test, made from a migrated template and dropped at the end.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use subledger::db::connect::Target;
use subledger::db::migrations;
use subledger::dev_postgres::PrivatePostgres;
use tokio_postgres::{Client, NoTls};

const TEMPLATE: &str = "migrated";

/// The server of this test run. It ends with the process.
static SERVER: OnceLock<PrivatePostgres> = OnceLock::new();

/// A database that lives as long as this value.
pub struct Database {
    name: String,
}

impl Database {
    /// A database with all migrations run.
    pub fn migrated() -> Self {
        Self::create(TEMPLATE)
    }

    /// A database with nothing in it.
    pub fn empty() -> Self {
        Self::create("template1")
    }

    fn create(template: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let statement = format!("CREATE DATABASE {name} TEMPLATE {template}");
        server();
        aside(async move { admin().await.batch_execute(&statement).await.unwrap() });
        Self { name }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn url(&self) -> String {
        url_of(&self.name)
    }

    pub fn target(&self) -> Target {
        Target::parse(&self.url()).unwrap()
    }

    /// Whether the database takes new connections.
    pub async fn allow_connections(&self, allowed: bool) {
        let statement = format!("ALTER DATABASE {} ALLOW_CONNECTIONS {allowed}", self.name);
        admin().await.batch_execute(&statement).await.unwrap();
    }

    /// Ends every connection, and lets no more in. This cannot be taken back.
    pub fn shut(&self) {
        let statements = [
            format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", self.name),
            format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'", self.name),
        ];
        aside(async move {
            for statement in statements {
                admin().await.batch_execute(&statement).await.unwrap();
            }
        });
    }

    /// A connection for the test's own statements.
    pub async fn client(&self) -> Client {
        client_of(&self.name).await
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let statement = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        aside(async move { admin().await.batch_execute(&statement).await.unwrap() });
    }
}

/// The server, started by the first test that needs it. Its folder is kept, since making a cluster takes a second.
fn server() -> &'static PrivatePostgres {
    SERVER.get_or_init(|| {
        let server = PrivatePostgres::start(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("postgres")).unwrap();
        aside(prepare(server.url()));
        server
    })
}

/// Removes what a run that was killed has left, and makes the template anew.
async fn prepare(url: String) {
    let admin = connect(&url).await;
    let left = "SELECT datname FROM pg_database WHERE datname LIKE 'test\\_%' OR datname = $1";
    for row in admin.query(left, &[&TEMPLATE]).await.unwrap() {
        admin.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", row.get::<_, String>(0))).await.unwrap();
    }
    // Set in every run: the server's folder is kept.
    let isolation = isolation();
    let set = format!("ALTER ROLE ALL SET default_transaction_isolation = '{isolation}'");
    admin.batch_execute(&set).await.unwrap();
    admin.batch_execute(&format!("CREATE DATABASE {TEMPLATE}")).await.unwrap();
    migrations::run(&Target::parse(&with_name(&url, TEMPLATE)).unwrap()).await.unwrap();
}

/// Where PostgreSQL's programs are: those of the server of this test run.
pub fn programs() -> PathBuf {
    let query = "SELECT setting FROM pg_config() WHERE name = 'BINDIR'";
    server();
    aside(async move { admin().await.query_one(query, &[]).await.unwrap().get::<_, String>(0) }).into()
}

/// The isolation of every transaction, the service's and the tests': PostgreSQL's own default, or what
/// `SUBLEDGER_TEST_ISOLATION` says, such as `serializable`. The promises hold at each level.
#[expect(clippy::disallowed_methods, reason = "how the tests are run is no configuration of the service")]
fn isolation() -> String {
    std::env::var("SUBLEDGER_TEST_ISOLATION").unwrap_or_else(|_| "read committed".to_owned())
}

/// Runs `task` on a runtime of its own, so that it does not matter from where it is called.
fn aside<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> T {
    std::thread::spawn(|| tokio::runtime::Runtime::new().unwrap().block_on(task)).join().unwrap()
}

async fn admin() -> Client {
    client_of("subledger").await
}

async fn client_of(name: &str) -> Client {
    connect(&url_of(name)).await
}

pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn url_of(name: &str) -> String {
    with_name(&server().url(), name)
}

fn with_name(url: &str, name: &str) -> String {
    let (server, _) = url.rsplit_once('/').unwrap();
    format!("{server}/{name}")
}

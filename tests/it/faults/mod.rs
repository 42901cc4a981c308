//! Faults, each while a sender delivers at least once: no event is lost, none is applied twice, and every row is right.

mod conflicts;
mod connection;
mod load;
mod processes;
mod refused;
mod stall;

use subledger::db::connect::Target;

use crate::support::database::Database;
use crate::support::proxy::Proxy;
use crate::support::{Settings, TestApp};

/// A server whose every connection to the database goes through a proxy.
async fn behind_proxy(settings: Settings) -> (Proxy, TestApp) {
    let database = Database::migrated();
    let proxy = Proxy::start(&database.url()).unwrap();
    let target = Target::parse(proxy.url()).unwrap();
    let app = TestApp::start_at(database, target, settings, None).await;
    (proxy, app)
}

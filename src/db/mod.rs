//! The database: one query per function, each returning [`diesel::QueryResult`], and what connects to it.
//! No business rule, and no transaction is opened here.

pub mod accounts;
mod cached;
pub mod connect;
pub mod events;
pub mod failures;
mod hosts;
pub mod listing;
pub mod locks;
pub mod migrations;
pub mod notifications;
pub mod overview;
pub mod pool;
pub mod raw_json;
pub mod record;
#[allow(missing_docs, reason = "generated")]
pub mod schema;
pub mod search;
pub mod sent;
pub mod subscriptions;
mod tls;
pub mod upkeep;
pub mod writes;

/// One connection to PostgreSQL.
pub type Conn = diesel_async::AsyncPgConnection;

//! The database: one query per function, each returning [`diesel::QueryResult`], and what connects to it.
//! No business rule, and no transaction is opened here.

pub mod accounts;
pub mod backfill;
mod breaker;
mod cached;
pub mod change_push;
pub mod changes;
pub mod connect;
pub mod doctor;
pub mod entitlements;
pub mod erase;
pub mod events;
pub mod facts;
pub mod failures;
pub mod features;
pub mod grants;
mod hosts;
pub mod installation;
pub mod listing;
pub mod locks;
pub mod maintenance;
pub mod migrations;
pub mod notifications;
pub mod overdue;
pub mod overview;
pub mod parked;
pub mod pool;
pub mod raw_json;
pub mod reconcile_accounts;
pub mod reconcile_state;
#[allow(missing_docs, reason = "generated")]
pub mod schema;
pub mod schema_name;
pub mod search;
pub mod sessions;
pub mod sqlstate;
pub mod subscriptions;
mod tls;
pub mod writes;

/// One connection to PostgreSQL.
pub type Conn = diesel_async::AsyncPgConnection;

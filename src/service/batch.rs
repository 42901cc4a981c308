//! Statements in one transaction, sent in one go: one round trip for all of them.

use std::future::Future;
use std::pin::pin;

use diesel::QueryResult;
use diesel_async::SimpleAsyncConnection;
use futures_util::future::{join, join_all, poll_immediate};
use tokio::task::coop::unconstrained;

use crate::db::{Conn, prepared};

/// Begins a transaction whose statements hardly wait for a lock, since all the others would wait with them.
const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '50ms'";

/// Runs the statements in one transaction: what came of each, or nothing of any.
///
/// `COMMIT` is sent behind them, before any of them is answered. After one that failed PostgreSQL takes it for a
/// `ROLLBACK`.
pub(super) async fn in_one_transaction<T>(
    conn: &Conn,
    statements: impl IntoIterator<Item = impl Future<Output = QueryResult<T>>>,
) -> QueryResult<Vec<T>> {
    let run = async |sql| (&mut &*conn).batch_execute(sql).await;
    let mut all = pin!(join(run(BEGIN), join_all(statements)));
    // Polled in turn, each sends before it waits; but one that is not prepared yet on this connection waits for that,
    // and a `COMMIT` would overtake it. (Unconstrained: none is to wait for the task's next turn.)
    let before = prepared::on_this_thread();
    let early = unconstrained(poll_immediate(&mut all)).await;
    let ((begun, came), ended) = if early.is_none() && prepared::on_this_thread() == before {
        join(all, run("COMMIT")).await
    } else {
        let done = match early {
            Some(done) => done,
            None => all.await,
        };
        let ended = run("COMMIT").await;
        (done, ended)
    };
    let came = begun.and_then(|()| came.into_iter().collect());
    ended.and(came)
}

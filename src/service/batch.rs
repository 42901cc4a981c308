//! Statements in one transaction, sent in one go: one round trip for all of them.

use std::future::Future;
use std::pin::pin;

use diesel::QueryResult;
use diesel_async::SimpleAsyncConnection;
use futures_util::future::{join, join_all, poll_immediate};
use tokio::task::coop::unconstrained;

use crate::db::Conn;
use crate::db::sent::{Begun, begun_on_this_thread};

/// Begins a transaction whose statements hardly wait for a lock, since all the others would wait with them.
const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '50ms'";

/// Runs statements in one transaction: what came of each, or nothing of any. Each of them is one that is kept prepared
/// ([`crate::db`]'s are), and begins with its first poll.
///
/// Where all are prepared, `COMMIT` is sent right behind them, before any of them is answered. After one that failed
/// PostgreSQL takes it for a `ROLLBACK`.
pub(super) async fn in_one_transaction<T>(
    conn: &Conn,
    statements: Vec<impl Future<Output = QueryResult<T>>>,
) -> QueryResult<Vec<T>> {
    let run = async |sql| (&mut &*conn).batch_execute(sql).await;
    let before = begun_on_this_thread();
    let all_sent = Begun { statements: before.statements + 1 + statements.len(), ..before };
    let mut all = pin!(join(run(BEGIN), join_all(statements)));
    // Polled in turn, each sends before it waits; but one that has to be prepared sends later, and a `COMMIT` would
    // overtake it. (Unconstrained: none is to wait for the task's next turn.)
    let early = unconstrained(poll_immediate(&mut all)).await;
    if early.is_none() && begun_on_this_thread() == all_sent {
        let ((begun, came), ended) = join(all, run("COMMIT")).await;
        return ended.and(begun).and_then(|()| came.into_iter().collect());
    }
    let (begun, came) = match early {
        Some(done) => done,
        None => all.await,
    };
    let came = begun.and_then(|()| came.into_iter().collect());
    run(if came.is_ok() { "COMMIT" } else { "ROLLBACK" }).await.and(came)
}

//! Queries over `event_notifications`: the thin notifications of recorded events.

use diesel::QueryResult;
use diesel::prelude::*;
use diesel::sql_types::{Array, Text};
use diesel_async::RunQueryDsl;

use super::Conn;
use super::schema::event_notifications as table;

/// The event of a notification; `None` if none is recorded.
pub async fn event_of(conn: &mut Conn, notification_id: &str) -> QueryResult<Option<String>> {
    table::table.find(notification_id).select(table::event_id).first(conn).await.optional()
}

#[derive(QueryableByName)]
struct EventId {
    #[diesel(sql_type = Text)]
    id: String,
}

/// The event that is recorded for this notification: for the notification, or under one of `event_ids`.
pub async fn recorded_event(conn: &mut Conn, notification_id: &str, event_ids: &[&str]) -> QueryResult<Option<String>> {
    let found: Option<EventId> = diesel::sql_query(
        "SELECT event_id AS id FROM event_notifications WHERE notification_id = $1
         UNION ALL
         SELECT id FROM stripe_events WHERE id = ANY ($2)
         LIMIT 1",
    )
    .bind::<Text, _>(notification_id)
    .bind::<Array<Text>, _>(event_ids)
    .get_result(conn)
    .await
    .optional()?;
    Ok(found.map(|event| event.id))
}

/// Notes that an event is that of a notification. The first notification of an event stands in the event's own row, and
/// what failed before under the notification's id is from now on a failure of the event. Nothing changes if the event
/// is not recorded or the notification is known.
pub async fn record(conn: &mut Conn, notification_id: &str, event_id: &str) -> QueryResult<usize> {
    diesel::sql_query(
        "WITH failed AS (
             UPDATE event_failures SET event_id = $2 WHERE event_id = $1 AND event_id <> $2
         ), first AS (
             UPDATE stripe_events SET notification_id = $1 WHERE id = $2 AND notification_id IS NULL
         )
         INSERT INTO event_notifications (notification_id, event_id)
         SELECT $1, id FROM stripe_events WHERE id = $2
         ON CONFLICT (notification_id) DO NOTHING",
    )
    .bind::<Text, _>(notification_id)
    .bind::<Text, _>(event_id)
    .execute(conn)
    .await
}

//! What applying an event would come to: the delivery as it is, rolled back.

use super::deliver::{Delivery, Recorded};
use super::transaction::{Work, WorkError};
use super::{Service, ServiceError};
use crate::db::Conn;
use crate::handlers::{Context, Handlers};
use crate::stripe::Event;

struct Preview<'a>(Delivery<'a, Handlers>);

impl Work for Preview<'_> {
    type Output = Recorded;

    async fn run(&self, conn: &mut Conn, ctx: Context<'_>) -> Result<Self::Output, WorkError<Self::Output>> {
        match self.0.run(conn, ctx).await {
            Ok((recorded, _)) | Err(WorkError::Done((recorded, _))) => Err(WorkError::Done(recorded)),
            Err(WorkError::Handler(error)) => Err(error.into()),
        }
    }
}

impl Service {
    /// What [`Service::apply`] would come to now. Nothing is committed, not even a failure.
    ///
    /// # Errors
    /// As [`Service::apply`].
    pub async fn preview(&self, event: Event) -> Result<Recorded, ServiceError> {
        let service = self.clone();
        self.on_runtime(async move {
            let delivery = Delivery { event: &event, handler: &Handlers };
            Ok(service.run(&Preview(delivery)).await?)
        })
        .await
    }
}

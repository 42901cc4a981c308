//! The settings of the view `account_entitlements`, which is the rule of entitlement.

use super::{READ_LIMIT, Service, ServiceError};
use crate::db::entitlements::{self, Settings};

impl Service {
    /// Writes this server's settings of the view, and warns if another server's were different.
    ///
    /// # Errors
    /// [`ServiceError`] if the database does not answer or takes no writes.
    pub async fn publish_entitlement_settings(&self) -> Result<(), ServiceError> {
        let service = self.clone();
        self.read(READ_LIMIT, async move {
            let ours = &service.parts().policy.entitlement;
            let mut conn = service.connection().await?;
            let stored = entitlements::settings(&mut conn).await?;
            if stored.as_ref().is_some_and(|(theirs, is_written)| *is_written && theirs == ours) {
                return Ok(());
            }
            if let Some((theirs, true)) = stored {
                log::warn!(
                    "the view account_entitlements now follows this server's settings ({}); the server that started \
                     before had others ({})",
                    in_words(ours),
                    in_words(&theirs)
                );
            }
            entitlements::set_settings(&mut conn, ours).await?;
            Ok(())
        })
        .await
    }
}

fn in_words(settings: &Settings) -> String {
    format!(
        "ENTITLED_STATUSES={} UNLISTED_PRICES={} OVERDUE_AFTER={}s",
        settings.entitled_statuses.join(","),
        if settings.ignore_unlisted_prices { "ignore" } else { "entitle" },
        settings.overdue_after.as_secs()
    )
}

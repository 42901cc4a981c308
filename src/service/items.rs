//! Reads the items that an event's subscription does not show, before a transaction is opened.

use super::Service;
use super::error::AttemptError;
use crate::handlers::Subject;
use crate::stripe::Event;

impl Service {
    /// The event with all items of its subscription; `None` if it shows all, or if there is no key or no subscription to
    /// read them of.
    pub(super) async fn with_all_items(&self, event: &Event) -> Result<Option<Event>, AttemptError> {
        let (Some(stripe), Some(id)) = (&self.parts().stripe, &event.subscription_id) else {
            return Ok(None);
        };
        if !event.kind.shows_a_subscription() || !event.object().has_more_items() {
            return Ok(None);
        }
        let failed = |source| AttemptError::Stripe { subject: Subject::Subscription(id.clone()), source };
        let listed = stripe.subscription_items(id, &event.scope()).await.map_err(failed)?;
        Ok(listed.map(|listed| event.clone().with_all_items(listed)))
    }
}

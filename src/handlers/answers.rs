//! What Stripe was asked, and answered, between the attempts at one transaction.

use std::collections::HashMap;

use serde_json::Value;

use super::HandlerError;

/// "What is this subscription now?"
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The event because of which it is asked; the answer counts as of its time.
    pub event_id: String,
    /// The subscription.
    pub subscription_id: String,
    /// On whose behalf it is asked.
    pub scope: crate::stripe::api::Scope,
    /// `last_event_id` of the subscription's row when the question came up. An answer is as new as that row only if
    /// the row still shows the same event.
    pub seen: Option<String>,
}

/// The answers so far, by the event for which they were asked.
#[derive(Debug, Default)]
pub struct Answers {
    can_ask: bool,
    given: HashMap<String, (Question, Option<Value>)>,
}

impl Answers {
    /// No answers yet; `can_ask` is whether there is a key to ask with.
    pub fn none_yet(can_ask: bool) -> Self {
        Self { can_ask, given: HashMap::new() }
    }

    /// Notes what Stripe answered; `None` is its 404.
    pub fn note(&mut self, question: Question, answer: Option<Value>) {
        self.given.insert(question.event_id.clone(), (question, answer));
    }

    /// How many questions were answered.
    pub fn count(&self) -> usize {
        self.given.len()
    }

    /// The answer to exactly this question; `None` where there is nothing to fetch or no key.
    pub(super) fn exact(&self, question: Question) -> Result<Option<&Value>, HandlerError> {
        if !self.can_ask {
            return Ok(None);
        }
        match self.given.get(&question.event_id) {
            Some((asked, answer)) if *asked == question => Ok(answer.as_ref()),
            _ => Err(HandlerError::NeedsStripe(question)),
        }
    }

    /// The answer to this question, also if the row has changed since it was asked.
    pub(super) fn any(&self, question: Question) -> Result<Option<&Value>, HandlerError> {
        if !self.can_ask {
            return Ok(None);
        }
        match self.given.get(&question.event_id) {
            Some((_, answer)) => Ok(answer.as_ref()),
            None => Err(HandlerError::NeedsStripe(question)),
        }
    }
}

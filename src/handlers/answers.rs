//! Questions to Stripe that came up in a transaction, and the answers for its next run.

use std::collections::HashMap;

use serde_json::Value;

use super::HandlerError;
use crate::stripe::api::Scope;

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The subscription of this id: the object.
    Subscription(String),
    /// The features of the customer of this id: a list of active entitlements.
    Features(String),
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Subscription(id) => f.write_str(id),
            Self::Features(customer) => write!(f, "the entitlements of customer {customer}"),
        }
    }
}

/// "What is this now?"
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The event because of which it is asked; the answer counts as of its time.
    pub event_id: String,
    /// What is asked about.
    pub subject: Subject,
    /// On whose behalf it is asked.
    pub scope: Scope,
    /// The subscription's other events of the event's second that were known when the question came up, by id, and the
    /// event that its row showed. An answer decides a tie only if no further event has become known since: what that one
    /// did may have happened after Stripe answered.
    pub known_events: Vec<String>,
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

    /// Whether there is a key to ask with.
    pub(super) fn can_ask(&self) -> bool {
        self.can_ask
    }

    /// The answer to exactly this question, with the same events known; `None` if Stripe has no such subscription, or
    /// there is no key.
    ///
    /// # Errors
    /// [`HandlerError::NeedsStripe`] if Stripe has to be asked first.
    pub(super) fn exact(&self, question: Question) -> Result<Option<&Value>, HandlerError> {
        self.find(question, |asked, question| asked == question)
    }

    /// The answer to this question, also if further events have become known since.
    ///
    /// # Errors
    /// As [`Answers::exact`].
    pub(super) fn any(&self, question: Question) -> Result<Option<&Value>, HandlerError> {
        self.find(question, |asked, question| asked.subject == question.subject)
    }

    fn find(
        &self,
        question: Question,
        is_same: impl Fn(&Question, &Question) -> bool,
    ) -> Result<Option<&Value>, HandlerError> {
        if !self.can_ask {
            return Ok(None);
        }
        match self.given.get(&question.event_id) {
            Some((asked, answer)) if is_same(asked, &question) => Ok(answer.as_ref()),
            _ => Err(HandlerError::NeedsStripe(question)),
        }
    }
}

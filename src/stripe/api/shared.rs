//! Calls that wait for the same object share one read. A read that has started is shared with nobody: a later question
//! needs a state that is at least as new as the question.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use serde_json::Value;

use super::pauses::{Target, target};
use super::{ApiError, Client, Common, Scope};

type Read = BoxFuture<'static, Result<Arc<Value>, ApiError>>;

type Reading = Shared<Read>;

/// The reads that have not started.
#[derive(Default)]
pub(super) struct Waiting(Mutex<HashMap<Target, WeakShared<Read>>>);

impl Waiting {
    /// Joins the waiting read of `key`, else queues a new one.
    fn join(&self, key: &Target, queue: impl FnOnce() -> Reading) -> Reading {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reading) = waiting.get(key).and_then(WeakShared::upgrade) {
            return reading;
        }
        let reading = queue();
        waiting.extend(reading.downgrade().map(|weak| (key.clone(), weak)));
        reading
    }
}

/// An entry of [`Waiting`], which ends with this value: when the read starts, or all callers have given up.
struct Entry {
    common: Weak<Common>,
    key: Target,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(common) = self.common.upgrade() {
            common.waiting.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        }
    }
}

impl Client {
    /// Reads an object within the limits, in a call that starts after this function was called.
    pub(super) async fn read(&self, scope: &Scope, path: &[&str]) -> Result<Arc<Value>, ApiError> {
        let key = target(scope, path);
        let reading = self.common.waiting.join(&key, || {
            let entry = Entry { common: Arc::downgrade(&self.common), key: key.clone() };
            let client = self.clone();
            async move {
                let _permit = client.admit(&entry.key).await?;
                let (scope, path) = entry.key.clone();
                drop(entry);
                let path: Vec<_> = path.iter().map(String::as_str).collect();
                client.call(&scope, &path, &[]).await.map(Arc::new)
            }
            .boxed()
            .shared()
        });
        reading.await
    }
}

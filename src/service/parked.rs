//! Parked events, applied once what they wait for is there: through the same path as deliveries, oldest first, in pages.
//!
//! Three things look for them. An event that links a customer or makes a row does, once it is committed; one that is parked
//! does, too, since what it waits for may have been committed meanwhile. So whichever of two transactions commits last sees
//! the other. A link over the API does. And a sweep does, for links that were made with SQL (triggers mark their accounts),
//! and now and then for what a crash left.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use uuid::Uuid;

use super::accounts::{Change, End};
use super::error::ServiceError;
use super::{Recorded, Service};
use crate::db::parked::{self, After, Awaited, Parked};
use crate::db::{Conn, accounts};
use crate::handlers::{HandlerError, Outcome, Recording, Submission, Work, move_misplaced};
use crate::stripe::Event;
use crate::stripe::signature::Verified;

/// How many parked events are read, and submitted, at a time.
const PAGE: i64 = 64;

/// How long the answer to an event waits for the parked events that it releases.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often links that were made with SQL are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(2);

/// How often all parked events are looked through, for what a crash left.
const SCAN_EVERY: Duration = Duration::from_secs(600);

/// How many accounts one sweep takes on at a time.
const SWEPT_ACCOUNTS: i64 = 100;

impl Service {
    /// Those of `awaited` for which an event is parked, or may be: an account's customers are looked at when it is released.
    pub(super) async fn with_parked(&self, awaited: Vec<Awaited>) -> HashSet<Awaited> {
        let looked = async {
            let mut conn = self.connection().await?;
            Ok::<_, ServiceError>(parked::awaited(&mut conn, &awaited).await?)
        };
        match looked.await {
            Ok(found) => found,
            Err(error) => {
                log::warn!("cannot look for parked events, the next sweep will: {}", error.chain());
                HashSet::new()
            }
        }
    }

    /// [`Service::release`] that goes on after the answer if it takes long.
    pub(super) async fn release_before_answer(&self, releases: Vec<Awaited>) {
        let service = self.clone();
        let job = self.parts().runtime.spawn(async move { service.release_all(releases).await });
        // It goes on: only the answer does not wait for it.
        tokio::time::timeout(PATIENCE, job).await.ok();
    }

    async fn release_all(&self, releases: Vec<Awaited>) {
        for awaited in releases {
            if let Err(error) = self.release(&awaited).await {
                log::warn!("cannot apply the events parked for {awaited:?}, the next sweep will: {}", error.chain());
            }
        }
    }

    /// Applies what is parked for an account: for each of its customers, and for the account by its name. Rows of its
    /// customers that stand elsewhere by their metadata alone are moved first.
    pub(super) async fn release_account(&self, account_id: Uuid) -> Result<(), ServiceError> {
        let mut conn = self.connection().await?;
        accounts::claim_new_links_of(&mut conn, account_id).await?;
        let customers = accounts::customers(&mut conn, account_id).await?;
        drop(conn);
        self.change(Moving { account_id }).await?;
        for customer in customers {
            self.apply_parked(&Awaited::Customer(customer)).await?;
        }
        self.apply_parked(&Awaited::Account(account_id)).await
    }

    async fn release(&self, awaited: &Awaited) -> Result<(), ServiceError> {
        match awaited {
            Awaited::Account(account_id) => Box::pin(self.release_account(*account_id)).await,
            _ => self.apply_parked(awaited).await,
        }
    }

    /// Applies what waits for `awaited`. One event that fails stays parked, with a row in `event_failures`, and holds up
    /// no other.
    async fn apply_parked(&self, awaited: &Awaited) -> Result<(), ServiceError> {
        let mut after = parked::beginning();
        loop {
            let mut conn = self.connection().await?;
            let page = parked::page(&mut conn, awaited, &after, PAGE).await?;
            drop(conn);
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = (last.created, last.id.clone());
            let is_last = page.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
            self.apply_page(page).await;
            if is_last {
                return Ok(());
            }
        }
    }

    async fn apply_page(&self, page: Vec<Parked>) {
        let submitted = page.into_iter().map(|parked| async move {
            let event = Event::parse(&Verified::from_own_tables(parked.payload));
            let result = match event {
                Ok(event) => {
                    let recording = Recording::Again(Outcome::Parked.as_str().to_owned());
                    Box::pin(self.submit(Submission { event: Arc::new(event), recording })).await
                }
                Err(error) => Err(ServiceError::Failed(error.into())),
            };
            if let Err(error) = result {
                log::error!("parked event {} failed: {}", parked.id, error.chain());
            }
        });
        join_all(submitted).await;
    }

    /// Sweeps for parked events that can be applied, until the service is dropped.
    pub fn start_sweep(&self) {
        let weak = Arc::downgrade(&self.inner);
        self.parts().runtime.spawn(async move {
            let mut next_scan = Instant::now();
            while let Some(inner) = weak.upgrade() {
                let service = Self { inner };
                if let Err(error) = service.sweep(&mut next_scan).await {
                    log::warn!("cannot look for parked events: {}", error.chain());
                }
                drop(service);
                tokio::time::sleep(SWEEP_EVERY).await;
            }
        });
    }

    async fn sweep(&self, next_scan: &mut Instant) -> Result<(), ServiceError> {
        loop {
            let mut conn = self.connection().await?;
            let claimed = accounts::claim_new_links(&mut conn, SWEPT_ACCOUNTS).await?;
            drop(conn);
            if claimed.is_empty() {
                break;
            }
            for account_id in claimed {
                self.release_account(account_id).await?;
            }
        }
        if Instant::now() >= *next_scan {
            *next_scan = Instant::now() + SCAN_EVERY;
            self.scan().await?;
        }
        Ok(())
    }

    /// Applies all parked events that look as if they could be placed.
    async fn scan(&self) -> Result<(), ServiceError> {
        let mut after: After = parked::beginning();
        loop {
            let mut conn = self.connection().await?;
            let page = parked::placeable_page(&mut conn, &after, PAGE).await?;
            drop(conn);
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = (last.created, last.id.clone());
            self.apply_page(page).await;
        }
    }

    /// What became of an event that is recorded with the outcome `former`, and is applied again.
    pub(super) async fn apply_again(&self, event: Event, former: String) -> Result<Recorded, ServiceError> {
        self.submit(Submission { event: Arc::new(event), recording: Recording::Again(former) }).await
    }
}

/// Moves rows that stand in other accounts by their metadata alone to the account of their customers.
struct Moving {
    account_id: Uuid,
}

impl Change for Moving {
    type Output = ();

    async fn run(&self, conn: &mut Conn, work: &mut Work, _: bool) -> Result<End<()>, HandlerError> {
        move_misplaced(conn, work, self.account_id).await?;
        Ok(if work.is_empty() { End::Rollback(()) } else { End::Commit(()) })
    }

    fn refused(_: &diesel::result::Error) -> Option<()> {
        None
    }
}

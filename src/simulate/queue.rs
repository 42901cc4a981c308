//! In which order everything is sent: shuffled over all lives, with duplicates, the same for the same seed. It sends
//! nothing.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::model::{Account, Life, Link};
use super::thin::{Form, Forms};

/// How far apart the deliveries of a burst are, where all of them together are 1.
const BURST: f64 = 0.003;

/// One thing to send.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Job {
    /// An event.
    Deliver(Delivery),
    /// An account, which the application makes while events come in.
    CreateAccount { account: Account },
    /// The customer of an account, which the application links while events come in.
    LinkCustomer { account: Account },
}

/// One delivery of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    /// Index of the life.
    pub(super) life: usize,
    /// Index of the occurrence in it.
    pub(super) occurrence: usize,
    /// How much more of the life has happened by then.
    pub(super) lead: usize,
    pub(super) form: Form,
}

/// Everything to send, in its order. `duplicates` is how many of a hundred deliveries come again.
pub(super) fn shuffled(seed: u64, lives: &[Life], duplicates: u32, forms: Forms) -> Vec<Job> {
    let mut rng = StdRng::seed_from_u64(!seed);
    let mut keyed: Vec<(f64, Job)> = Vec::new();
    for (index, life) in lives.iter().enumerate() {
        // Some lives come all at once: their events meet at the same row.
        let burst: Option<f64> = rng.random_bool(0.4).then(|| rng.random());
        let forms = |occurrence| forms.of(life, occurrence).into_iter().map(move |form| (occurrence, form));
        for (occurrence, form) in (0..life.occurrences.len()).flat_map(forms) {
            let lead = if rng.random_bool(0.6) { 0 } else { rng.random_range(1..4) };
            let delivery = Delivery { life: index, occurrence, lead, form };
            let key = moment(&mut rng, burst);
            keyed.push((key, Job::Deliver(delivery)));
            while rng.random_ratio(duplicates.min(99), 100) {
                // At the same moment, or at any other.
                let key = if rng.random_bool(0.5) { key } else { rng.random() };
                keyed.push((key, Job::Deliver(delivery)));
            }
        }
        let is_first_of_account = index == 0 || lives[index - 1].account.id != life.account.id;
        if is_first_of_account && let Some(job) = job_for(&life.account) {
            keyed.push((moment(&mut rng, burst), job));
        }
    }
    // Stable: what comes at the same moment keeps its order, which is the seed's.
    keyed.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    keyed.into_iter().map(|(_, job)| job).collect()
}

/// Any moment between 0 and 1, or one of the burst that begins at `burst`.
fn moment(rng: &mut StdRng, burst: Option<f64>) -> f64 {
    let random: f64 = rng.random();
    burst.map_or(random, |burst| burst + BURST * random)
}

fn job_for(account: &Account) -> Option<Job> {
    match account.link {
        Link::CustomerBefore | Link::CheckoutBefore => None,
        Link::CustomerDuring | Link::CheckoutDuring | Link::MetadataDuring => {
            Some(Job::CreateAccount { account: account.clone() })
        }
        Link::PatchedDuring => Some(Job::LinkCustomer { account: account.clone() }),
    }
}

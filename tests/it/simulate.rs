//! `subledger simulate`: the tables show the truth in whatever form events are delivered, and what they do not show is
//! found.

use std::net::SocketAddr;

use crate::support::binary::Server;
use crate::support::database::Database;
use crate::support::job::{self, Ran};
use crate::support::simulation::{free_address, serve_with_stripe, spawn};

/// A server, its database, and where it expects Stripe's API.
struct Setup {
    database: Database,
    stripe: SocketAddr,
    server: Server,
    /// Given to both the server and `simulate`.
    price_plans: &'static str,
}

impl Setup {
    fn start(price_plans: &'static str) -> Self {
        let (database, stripe) = (Database::migrated(), free_address());
        let server = serve_with_stripe(&database.url(), stripe, &[("PRICE_PLANS", price_plans)]);
        Self { database, stripe, server, price_plans }
    }

    async fn simulate(&self, customers: u32, further: &[&str]) -> Ran {
        let stripe = self.stripe.to_string();
        let further = [&["--stripe-api", &stripe, "--price-plans", self.price_plans], further].concat();
        job::wait(spawn(&self.server.address, &self.database.url(), customers, 16, &further)).await
    }
}

fn check(ran: &Ran) {
    println!("{}", ran.out);
    ran.ends_with(0);
    assert!(ran.out.contains("the tables show the truth"), "{}", ran.out);
}

/// A product, of an add-on: the plan item is not always the first one.
const PLANS: &str = "price_1SimTeamMonthly0000001=crew,prod_SimSupport001=supported,prod_SimArchive001=archivist";

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_with_listed_prices_lead_to_the_truth() {
    check(&Setup::start(PLANS).simulate(15, &["--seed", "3"]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn thin_events_lead_to_the_truth() {
    check(&Setup::start("").simulate(8, &["--seed", "1", "--thin"]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_and_thin_events_of_the_same_changes_lead_to_the_truth() {
    check(&Setup::start(PLANS).simulate(8, &["--seed", "2", "--forms", "both"]).await);
}

/// What a trigger does to a row, and the field in which `simulate` has to find it.
const FAULTS: [(&str, &str, &str); 8] = [
    ("subscriptions", "NEW.cancel_at := NEW.canceled_at", "cancel_at"),
    ("subscriptions", "NEW.items := NEW.items - (-1)", "items"),
    ("subscriptions", "NEW.plan_source := 'price_id'", "plan_source"),
    ("subscriptions", "NEW.latest_invoice_status := 'open'", "latest_invoice_status"),
    ("subscriptions", "NEW.metadata := '{}'", "metadata"),
    ("subscriptions", "NEW.cancellation_feedback := NULL", "cancellation_feedback"),
    (
        "subscription_changes",
        "IF 'renewed' = ANY (NEW.kinds) THEN RETURN NULL; END IF",
        "columns of a change that are not the former one's",
    ),
    ("customer_features", "IF NEW.lookup_key = 'sso' THEN RETURN NULL; END IF", "features"),
];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_tables_show_amiss_is_found() {
    let setup = Setup::start("");
    let sql = setup.database.client().await;
    for (table, fault, field) in FAULTS {
        let trigger = format!(
            "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {fault}; RETURN NEW; END $$;
             CREATE TRIGGER spoil BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION spoil()"
        );
        sql.batch_execute(&trigger).await.unwrap();
        let ran = setup.simulate(24, &["--seed", "4"]).await;
        sql.batch_execute("DROP FUNCTION spoil CASCADE").await.unwrap();
        ran.ends_with(1);
        assert!(ran.out.contains(&format!(": {field}: expected ")), "{fault}\n{}", ran.out);
    }
}

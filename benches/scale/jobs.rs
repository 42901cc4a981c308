//! What `import` and `reconcile` take, in time and in memory, where everything is new to the database and where nothing is.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::report::Column;
use crate::stripe::{Lists, Stripe, customer_id};
use crate::support::database::Database;
use crate::support::server::status;

/// How often the memory of a command is read. What counts is the most it ever had, so only its last moments are missed.
const INTERVAL: Duration = Duration::from_millis(10);

/// The program, and what it runs against.
struct Setting<'a> {
    program: &'a Path,
    database_url: String,
    stripe: Stripe,
}

/// Of how many subscriptions `reconcile` is to read the state at most. It compares no more of them.
const MOST_CONCERNED: u64 = 10_000;

/// `count` subscriptions, each of a customer of its own, or as many events.
pub fn measure(database: &mut Database, program: &Path, count: u64, column: &mut Column) -> Result<()> {
    let concerned = count.min(MOST_CONCERNED);
    let subscriptions = || Stripe::start(Lists { subscriptions: count, events: 0, concerned });
    let events = || Stripe::start(Lists { subscriptions: 0, events: count, concerned });

    let linked = Setting::prepare(database, program, count, subscriptions()?)?;
    linked.run(&["import"], &format!("import of {count}, linked"), column)?;
    linked.run(&["import"], &format!("import of {count} that are there"), column)?;
    let parked = Setting::prepare(database, program, 0, subscriptions()?)?;
    parked.run(&["import"], &format!("import of {count}, parked"), column)?;
    let missing = Setting::prepare(database, program, concerned, events()?)?;
    missing.run(&["reconcile", "--since", "72h"], &format!("reconcile, {count} missing"), column)?;
    missing.run(&["reconcile", "--since", "72h"], &format!("reconcile of {count}, none missing"), column)
}

impl<'a> Setting<'a> {
    /// A database that `program` has migrated itself, with so many linked accounts. It replaces that of the last setting.
    fn prepare(database: &mut Database, program: &'a Path, accounts: u64, stripe: Stripe) -> Result<Self> {
        let setting = Self { program, database_url: database.further("jobs")?, stripe };
        ensure!(setting.command(&["migrate"]).status()?.success(), "the program does not migrate");
        let customers: Vec<_> = (1..=accounts).map(customer_id).collect();
        let insert = format!(
            "INSERT INTO accounts (name, stripe_customer_id) SELECT id, id FROM unnest('{{{}}}'::text[]) AS id",
            customers.join(",")
        );
        database.execute_at(&setting.database_url, &[&insert, "VACUUM ANALYZE accounts"])?;
        Ok(setting)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        command
            // Nothing of what the caller's environment configures.
            .env_clear()
            .env("DATABASE_URL", &self.database_url)
            .env("STRIPE_WEBHOOK_SECRET", "whsec_bench")
            .env("STRIPE_SECRET_KEY", "sk_test_bench")
            .env("STRIPE_API_BASE", self.stripe.url())
            // As much as Stripe allows an account, less what deliveries may need.
            .env("STRIPE_READS_PER_SECOND", "90")
            .env("RUST_LOG", "warn")
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// Runs a command to its end, which must be a success.
    fn run(&self, args: &[&str], name: &str, column: &mut Column) -> Result<()> {
        let started = Instant::now();
        let mut child =
            self.command(args).spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
        let mut peak = None;
        let ended = loop {
            if let Some(ended) = child.try_wait()? {
                break ended;
            }
            // Not known where there is no /proc.
            peak = status(child.id(), "VmHWM:").ok().or(peak);
            thread::sleep(INTERVAL);
        };
        let seconds = started.elapsed().as_secs_f64();
        ensure!(ended.success(), "{name}: {ended}");
        eprintln!("{name}: {seconds:.1} s");
        column.add(format!("{name}: seconds"), format!("{seconds:.1}"));
        let mib = peak.map_or("not known".to_owned(), |kib| format!("{:.0}", kib as f64 / 1024.0));
        column.add(format!("{name}: most memory, MiB"), mib);
        Ok(())
    }
}

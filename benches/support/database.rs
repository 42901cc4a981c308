//! The private PostgreSQL, a process of its own, with a connection of the measurement's own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use subledger::db::connect::Target;
use subledger::db::migrations;
use subledger::dev_postgres::PrivatePostgres;
use tokio::runtime::Runtime;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls};

const SUBSCRIPTIONS: &str = "
    INSERT INTO accounts (id, name, stripe_customer_id)
        SELECT md5(n::text)::uuid, 'Account ' || n, 'cus_' || lpad(n::text, 14, '0') FROM generate_series(1, $COUNT) n;
    INSERT INTO subscriptions (account_id, plan, status, stripe_subscription_id, stripe_customer_id, stripe_price_id,
            seat_limit, current_period_start, current_period_end, last_event_id, projected_event_id, last_event_type,
            last_event_created)
        SELECT id, 'team', 'active', 'sub_' || lpad(substr(stripe_customer_id, 5), 24, '0'), stripe_customer_id,
            'price_Bench', 8, '2026-11-01Z', '2026-12-01Z', 'evt_Bench', 'evt_Bench', 'customer.subscription.created',
            '2026-11-01Z'
        FROM accounts";

pub struct Database {
    dir: PathBuf,
    postgres: PrivatePostgres,
    client: Client,
    runtime: Runtime,
}

impl Database {
    /// A new one beneath `dir`, migrated and empty, or the one that is there.
    pub fn start(dir: &Path) -> Result<Self> {
        let postgres = PrivatePostgres::start(dir)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(migrations::run(&Target::parse(&postgres.url())?))?;
        let (client, connection) = runtime.block_on(tokio_postgres::connect(&postgres.url(), NoTls))?;
        runtime.spawn(connection);
        Ok(Self { dir: dir.to_owned(), postgres, client, runtime })
    }

    pub fn stop(self) -> Result<()> {
        drop(self.client);
        self.postgres.stop()
    }

    /// With the settings that take effect at a start only.
    pub fn restarted(self) -> Result<Self> {
        let dir = self.dir.clone();
        self.stop()?;
        Self::start(&dir)
    }

    pub fn url(&self) -> String {
        self.postgres.url()
    }

    /// Makes subscriptions, each of an account and a customer of its own, and has the planner know them.
    pub fn fill_subscriptions(&mut self, count: u64) -> Result<()> {
        self.fill_unanalysed_subscriptions(count)?;
        self.execute("VACUUM ANALYZE")
    }

    /// The same, of which the planner has no statistics.
    pub fn fill_unanalysed_subscriptions(&mut self, count: u64) -> Result<()> {
        self.execute_each(&SUBSCRIPTIONS.replace("$COUNT", &count.to_string()))
    }

    /// Statements in one go, and so in one transaction unless they say otherwise.
    pub fn execute(&mut self, statements: &str) -> Result<()> {
        self.runtime.block_on(self.client.batch_execute(statements)).with_context(|| statements.to_owned())
    }

    /// Statements each by itself: some want no transaction around them.
    pub fn execute_each(&mut self, statements: &str) -> Result<()> {
        statements.split(';').try_for_each(|statement| self.execute(statement))
    }

    /// A further database, empty, and its URL. It replaces one of the same name.
    pub fn further(&mut self, name: &str) -> Result<String> {
        self.execute_each(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE); CREATE DATABASE {name}"))?;
        let url = self.url();
        let (server, _) = url.rsplit_once('/').context("a URL without a database")?;
        Ok(format!("{server}/{name}"))
    }

    /// Statements one after the other in the database at `url`.
    pub fn execute_at(&self, url: &str, statements: &[&str]) -> Result<()> {
        self.runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
            self.runtime.spawn(connection);
            for statement in statements {
                client.batch_execute(statement).await.with_context(|| (*statement).to_owned())?;
            }
            Ok(())
        })
    }

    /// The one text that a query answers.
    pub fn text(&mut self, query: &str) -> Result<String> {
        Ok(self.runtime.block_on(self.client.query_one(query, &[])).with_context(|| query.to_owned())?.try_get(0)?)
    }

    /// The one number that a query answers.
    pub fn count(&mut self, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64> {
        let row = self.runtime.block_on(self.client.query_one(query, parameters)).with_context(|| query.to_owned())?;
        Ok(u64::try_from(row.try_get::<_, i64>(0)?)?)
    }

    /// Rows of a name and a number.
    pub fn named_counts(&mut self, query: &str) -> Result<Vec<(String, i64)>> {
        let rows = self.runtime.block_on(self.client.query(query, &[])).with_context(|| query.to_owned())?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }
}

//! `subledger grants`: what the application's role may do, what it may not, and what the server's role needs.

use serde_json::json;
use subledger::db::connect::Target;
use subledger::db::schema_name::identifier;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use crate::support::database::connect;
use crate::support::job::{self, Ran};
use crate::support::{Event, Settings, TestApp};

/// A role that exists for one test, with a name that has to be quoted.
pub struct Role {
    pub name: String,
    pub url: String,
}

impl Role {
    pub async fn create(app: &TestApp, suffix: &str) -> Self {
        let name = format!("{} {suffix}\"'; --", app.database.name());
        let role = identifier(&name);
        app.execute(&format!("DROP ROLE IF EXISTS {role}")).await;
        app.execute(&format!("CREATE ROLE {role} LOGIN")).await;
        let url = app.database.url();
        let (_, server) = url.split_once('@').unwrap();
        let user: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
        Self { url: format!("postgres://{user}@{server}"), name }
    }

    pub async fn client(&self) -> Client {
        connect(&self.url).await
    }

    pub async fn drop(self, app: &TestApp) {
        let role = identifier(&self.name);
        app.execute(&format!("DROP OWNED BY {role} CASCADE; DROP ROLE {role}")).await;
    }
}

pub async fn grants(app: &TestApp, args: &[&str]) -> Ran {
    job::run(app, None, &[&["grants"], args].concat()).await
}

/// Why a statement was refused; nothing where it was not.
async fn refusal(sql: &Client, statement: &str) -> Option<SqlState> {
    let result = sql.batch_execute(&format!("BEGIN; {statement}; ROLLBACK")).await;
    let state = result.err().map(|error| error.code().cloned().unwrap());
    sql.batch_execute("ROLLBACK").await.unwrap();
    state
}

/// A server with a subscription of Stripe's, a local one, and their account.
async fn start() -> (TestApp, Uuid) {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    let subscription = json!({"id": "sub_1", "object": "subscription", "customer": "cus_1", "status": "past_due"});
    app.deliver(Event::new("evt_1", "customer.subscription.created", 100, subscription)).await;
    let other = app.account().await;
    app.local_trial(other).await;
    (app, account)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_may_do_what_it_needs_and_nothing_else() {
    let (app, account) = start().await;
    let role = Role::create(&app, "app").await;
    // More than it should have, from before.
    app.execute(&format!("GRANT ALL ON ALL TABLES IN SCHEMA public TO {}, PUBLIC", identifier(&role.name))).await;
    for _ in 0..2 {
        let ran = grants(&app, &["--app-role", &role.name, "--apply"]).await;
        ran.ends_with(0);
    }
    let sql = role.client().await;
    for allowed in [
        "SELECT * FROM accounts, account_customers, subscriptions",
        "INSERT INTO accounts (name, stripe_customer_id) VALUES ('New', 'cus_9') RETURNING *",
        "INSERT INTO accounts (id) VALUES (gen_random_uuid())",
        "UPDATE accounts SET name = 'Other', stripe_customer_id = 'cus_8' WHERE stripe_customer_id = 'cus_1'",
        "INSERT INTO subscriptions (account_id, plan, status, seat_limit, trial_end, current_period_start,
             current_period_end) SELECT id, 'pro', 'trialing', 3, now(), now(), now() FROM accounts RETURNING *",
        "UPDATE subscriptions SET status = 'canceled', ended_at = now(), plan = 'x' WHERE stripe_subscription_id IS NULL",
        "SELECT * FROM subscriptions WHERE stripe_subscription_id IS NULL FOR UPDATE",
    ] {
        assert_eq!(refusal(&sql, allowed).await, None, "{allowed}");
    }
    for denied in [
        "SELECT payload FROM stripe_events",
        "SELECT id FROM stripe_events",
        "SELECT * FROM event_failures",
        "SELECT * FROM __diesel_schema_migrations",
        "INSERT INTO stripe_events (id, type, outcome, livemode, payload) VALUES ('evt_x', 'x', 'ignored', true, '{}')",
        "DELETE FROM accounts",
        "DELETE FROM subscriptions",
        "DELETE FROM account_customers",
        "TRUNCATE subscriptions",
        "UPDATE accounts SET id = gen_random_uuid()",
        "UPDATE accounts SET local_plan = 'pro'",
        "INSERT INTO account_customers (stripe_customer_id, account_id) SELECT 'cus_x', id FROM accounts",
        "INSERT INTO subscriptions (account_id, status, stripe_subscription_id) SELECT id, 'active', 'sub_x' FROM accounts",
        "UPDATE subscriptions SET stripe_subscription_id = 'sub_x'",
        "UPDATE subscriptions SET account_id = gen_random_uuid()",
        "UPDATE subscriptions SET last_event_created = now()",
        "ALTER TABLE subscriptions ADD COLUMN mine text",
        "ALTER TABLE subscriptions DISABLE ROW LEVEL SECURITY",
        "CREATE INDEX ON subscriptions (plan)",
        "CREATE TABLE public.mine (account_id uuid REFERENCES accounts)",
        "DROP TABLE accounts",
        "CREATE TABLE accounts_too (id int)",
    ] {
        assert_eq!(refusal(&sql, denied).await, Some(SqlState::INSUFFICIENT_PRIVILEGE), "{denied}");
    }
    // Stripe's rows are not there to be changed.
    let changed = sql.execute("UPDATE subscriptions SET status = 'active' WHERE stripe_subscription_id = 'sub_1'", &[]);
    assert_eq!(changed.await.unwrap(), 0);
    assert_eq!(app.subscription("sub_1").await["status"], "past_due");
    assert_eq!(app.subscription("sub_1").await["account_id"], json!(account));

    let stranger = Role::create(&app, "stranger").await;
    let other = stranger.client().await;
    for table in ["accounts", "subscriptions", "stripe_events", "event_failures", "account_customers"] {
        let select = format!("SELECT * FROM {table}");
        assert_eq!(refusal(&other, &select).await, Some(SqlState::INSUFFICIENT_PRIVILEGE), "PUBLIC: {table}");
    }
    role.drop(&app).await;
    stranger.drop(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_makes_triggers_on_subscriptions_and_deliveries_run_them() {
    let (app, _) = start().await;
    let role = Role::create(&app, "app").await;
    grants(&app, &["--app-role", &role.name, "--apply"]).await.ends_with(0);
    app.execute(&format!("CREATE SCHEMA own AUTHORIZATION {}", identifier(&role.name))).await;
    let sql = role.client().await;
    sql.batch_execute(
        "CREATE TABLE own.jobs (subscription text);
         CREATE FUNCTION own.enqueue() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
             $$ BEGIN INSERT INTO own.jobs VALUES (NEW.stripe_subscription_id); RETURN NEW; END $$;
         CREATE TRIGGER enqueue AFTER INSERT OR UPDATE ON subscriptions FOR EACH ROW EXECUTE FUNCTION own.enqueue()",
    )
    .await
    .unwrap();
    let subscription = json!({"id": "sub_1", "object": "subscription", "customer": "cus_1", "status": "active"});
    let answer = app.deliver(Event::new("evt_2", "customer.subscription.updated", 200, subscription)).await;
    assert_eq!(answer.outcome(), "applied");
    assert_eq!(app.count("own.jobs WHERE subscription = 'sub_1'").await, 1);
    role.drop(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_role_than_the_owner_serves_with_what_it_is_granted() {
    let (app, _) = start().await;
    let server = Role::create(&app, "server").await;
    let printed = grants(&app, &["--server-role", &server.name]).await;
    printed.ends_with(0);
    // What is printed is what is to be run.
    app.execute(&printed.out).await;
    let TestApp { database, sql, .. } = &app;
    let target = Target::parse(&server.url).unwrap();
    let other = subledger::server::Application::build(crate::support::app::config(&Settings::default(), None), target);
    let other = other.await.unwrap();
    let url = format!("http://{}/api/v1/webhooks/stripe", other.address());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(other.run_until_stopped(async { stopped.await.unwrap_or_default() }));
    let subscription = json!({"id": "sub_1", "object": "subscription", "customer": "cus_1", "status": "active"});
    for (id, kind, status) in [("evt_2", "updated", "active"), ("evt_3", "deleted", "canceled")] {
        let mut subscription = subscription.clone();
        subscription["status"] = json!(status);
        let created = if kind == "deleted" { 300 } else { 200 };
        let body = Event::new(id, &format!("customer.subscription.{kind}"), created, subscription).to_string();
        let signature = crate::support::app::signature(body.as_bytes());
        let request = app.http.post(&url).header("Stripe-Signature", signature).body(body);
        assert_eq!(crate::support::app::answer(request).await.outcome(), "applied");
    }
    let query = "SELECT status FROM subscriptions WHERE stripe_subscription_id = 'sub_1'";
    assert_eq!(sql.query_one(query, &[]).await.unwrap().get::<_, String>(0), "canceled");
    stop.send(()).ok();
    running.await.unwrap().unwrap();

    let refused = grants(&app, &["--app-role", &server.name]).await;
    refused.ends_with(1);
    assert!(database.name().len() > 4 && refused.err.contains("subledger's own role"), "{}", refused.err);
    server.drop(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_that_could_do_everything_are_refused_in_one_line_and_nothing_is_granted() {
    let (app, _) = start().await;
    let owner = Role::create(&app, "owner").await;
    let member = Role::create(&app, "member").await;
    let (owner_name, member_name) = (identifier(&owner.name), identifier(&member.name));
    app.execute(&format!("ALTER TABLE accounts OWNER TO {owner_name}; GRANT {owner_name} TO {member_name}")).await;
    for (role, words) in [
        ("subledger", "superuser"),
        (&*owner.name, "owner"),
        (&*member.name, "may act as"),
        ("nobody at all", "does not exist"),
        ("PUBLIC", "does not exist"),
    ] {
        for apply in [&[][..], &["--apply"]] {
            let ran = grants(&app, &[&["--app-role", role], apply].concat()).await;
            ran.ends_with(1);
            assert!(ran.err.contains(words) && ran.err.lines().count() == 1 && ran.out.is_empty(), "{}", ran.err);
        }
    }
    grants(&app, &[]).await.ends_with(2);
    app.execute("ALTER TABLE accounts OWNER TO subledger").await;
    member.drop(&app).await;
    owner.drop(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_policy_shows_each_account_its_own_subscriptions() {
    let (app, account) = start().await;
    let role = Role::create(&app, "app").await;
    grants(&app, &["--app-role", &role.name, "--apply"]).await.ends_with(0);
    let document = include_str!("../../../docs/reading.md");
    let policy = document.split("```sql\n").find(|text| text.starts_with("CREATE POLICY by_account")).unwrap();
    let policy = policy.split("```").next().unwrap().replace(" app\n", &format!(" {}\n", identifier(&role.name)));
    app.execute(&policy).await;
    let sql = role.client().await;
    let count =
        async |sql: &Client| -> i64 { sql.query_one("SELECT count(*) FROM subscriptions", &[]).await.unwrap().get(0) };
    assert_eq!(count(&sql).await, 0, "no account is chosen");
    sql.batch_execute(&format!("SET app.account_id = '{account}'")).await.unwrap();
    assert_eq!(count(&sql).await, 1);
    let seen = sql.query_one("SELECT account_id FROM subscriptions", &[]).await.unwrap();
    assert_eq!(seen.get::<_, Uuid>(0), account);
    assert_eq!(app.count("subscriptions").await, 2, "subledger sees them all");
    role.drop(&app).await;
}

//! The page for people over HTTP: who gets in, what a form must bring, what each page holds.

use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT, AUTHORIZATION, COOKIE, HeaderMap, LOCATION, SET_COOKIE};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, RequestBuilder};
use serde_json::json;
use url::form_urlencoded;

use crate::support::app::{ADMIN_TOKEN, answer};
use crate::support::database::Database;
use crate::support::events::{created, subscription};
use crate::support::world::{SCRIPT, break_subscriptions, mend_subscriptions, populate};
use crate::support::{Event, Settings, TestApp};

/// A browser without a screen: keeps its cookies and follows no redirect.
struct Visitor<'a> {
    app: &'a TestApp,
    http: Client,
    cookies: Vec<(String, String)>,
}

struct Page {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Page {
    fn location(&self) -> &str {
        self.headers[LOCATION].to_str().unwrap()
    }

    /// The value of a hidden field.
    #[track_caller]
    fn field(&self, name: &str) -> String {
        let start = format!("name=\"{name}\" value=\"");
        let (_, rest) = self.body.split_once(&start).unwrap_or_else(|| panic!("no {name}: {}", self.body));
        rest.split('"').next().unwrap().to_owned()
    }

    fn set_cookies(&self) -> Vec<String> {
        self.headers.get_all(SET_COOKIE).iter().map(|cookie| cookie.to_str().unwrap().to_owned()).collect()
    }

    #[track_caller]
    fn has(&self, text: &str) {
        assert!(self.body.contains(text), "no {text:?} in {}", self.body);
    }

    /// How many events a list has.
    fn rows(&self) -> usize {
        self.body.matches("data-label=\"Event\"").count()
    }
}

impl<'a> Visitor<'a> {
    fn new(app: &'a TestApp) -> Self {
        Self { app, http: Client::builder().redirect(Policy::none()).build().unwrap(), cookies: Vec::new() }
    }

    async fn logged_in(app: &'a TestApp) -> Self {
        let mut visitor = Self::new(app);
        assert_eq!(visitor.log_in(ADMIN_TOKEN).await.status, 303);
        visitor
    }

    async fn log_in(&mut self, token: &str) -> Page {
        let csrf = self.get("/admin").await.field("csrf");
        self.post("/admin/login", &[("token", token), ("csrf", &csrf), ("next", "/admin/events")]).await
    }

    async fn get(&mut self, path: &str) -> Page {
        self.send(self.http.get(self.app.url(path))).await
    }

    async fn post(&mut self, path: &str, fields: &[(&str, &str)]) -> Page {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        self.send(self.http.post(self.app.url(path)).body(body)).await
    }

    async fn send(&mut self, request: RequestBuilder) -> Page {
        let pairs: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = request.header(COOKIE, pairs.join("; ")).header(ACCEPT, "text/html,*/*;q=0.8");
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let page = Page { status, headers, body: response.text().await.unwrap() };
        for cookie in page.set_cookies() {
            let (name, value) = cookie.split(';').next().unwrap().split_once('=').unwrap();
            self.cookies.retain(|(known, _)| known != name);
            if !cookie.contains("Max-Age=0") {
                self.cookies.push((name.to_owned(), value.to_owned()));
            }
        }
        page
    }

    fn session(&self) -> &str {
        &self.cookies.iter().find(|(name, _)| name == "subledger_session").unwrap().1
    }

    fn set_session(&mut self, value: String) {
        self.cookies = vec![("subledger_session".to_owned(), value)];
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_token_gets_in_and_out_again() {
    let app = TestApp::start().await;
    let mut visitor = Visitor::new(&app);
    let front = visitor.get("/admin/events?type=a%22b").await;
    assert_eq!(front.status, 401);
    assert_eq!(front.field("next"), "/admin/events?type=a%22b");
    let refused = visitor.log_in("wrong").await;
    assert_eq!(refused.status, 401);
    refused.has("That is not the admin token.");
    assert!(!refused.set_cookies().iter().any(|cookie| cookie.starts_with("subledger_session")));

    let entered = visitor.log_in(ADMIN_TOKEN).await;
    assert_eq!((entered.status, entered.location()), (303, "/admin/events"));
    let cookie = entered.set_cookies().into_iter().find(|cookie| cookie.starts_with("subledger_session=")).unwrap();
    let attributes: Vec<_> = cookie.split("; ").skip(1).collect();
    assert_eq!(attributes, ["Path=/", "Max-Age=43200", "HttpOnly", "SameSite=Strict"]);
    let overview = visitor.get("/admin").await;
    assert_eq!(overview.status, 200);

    let out = visitor.post("/admin/logout", &[("csrf", &overview.field("csrf"))]).await;
    assert_eq!((out.status, out.location()), (303, "/admin"));
    assert_eq!(visitor.get("/admin").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_that_came_by_https_stays_with_https() {
    let app = TestApp::start().await;
    let mut visitor = Visitor::new(&app);
    let csrf = visitor.get("/admin").await.field("csrf");
    let body = format!("token={ADMIN_TOKEN}&csrf={csrf}");
    let request = visitor.http.post(app.url("/admin/login")).header("X-Forwarded-Proto", "https").body(body);
    let entered = visitor.send(request).await;
    assert_eq!(entered.status, 303);
    assert!(entered.set_cookies().iter().all(|cookie| cookie.ends_with("; Secure")), "{:?}", entered.set_cookies());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_form_is_good_only_in_the_browser_it_was_shown_to() {
    let app = TestApp::start().await;
    let csrf = Visitor::new(&app).get("/admin").await.field("csrf");
    let mut other = Visitor::new(&app);
    let refused = other.post("/admin/login", &[("token", ADMIN_TOKEN), ("csrf", &csrf)]).await;
    assert_eq!(refused.status, 403);
    other.get("/admin").await;
    let refused = other.post("/admin/login", &[("token", ADMIN_TOKEN), ("csrf", &csrf)]).await;
    assert_eq!(refused.status, 403);
    assert_eq!(other.post("/admin/login", &[("token", ADMIN_TOKEN)]).await.status, 400);
    let csrf = refused.field("csrf");
    let abroad = [("token", ADMIN_TOKEN), ("csrf", csrf.as_str()), ("next", "https://evil.test/admin")];
    assert_eq!(other.post("/admin/login", &abroad).await.location(), "/admin");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_at_logout_with_its_time_and_with_its_token_on_every_replica() {
    let app = TestApp::start().await;
    let replica = TestApp::start_beside(&app, Settings::default()).await;
    let other_token = Settings { admin_token: Some("another token"), ..Settings::default() };
    let other = TestApp::start_beside(&app, other_token).await;
    let mut visitor = Visitor::logged_in(&app).await;
    let session = visitor.session().to_owned();
    for (app, status) in [(&app, 200), (&replica, 200), (&other, 401)] {
        assert_eq!(status_with(app, &session).await, status);
    }
    for forged in ["", "0", &session[1..], &session.replace(&session[..2], "zz"), &"0".repeat(64)] {
        assert_eq!(status_with(&app, forged).await, 401, "{forged}");
    }
    // The database has no more than a hash.
    let stored = app.one("SELECT encode(id_hash, 'hex'), expires_at - now() > '11 hours' FROM admin_sessions").await;
    assert!(stored.get::<_, String>(0) != session && stored.get::<_, bool>(1));
    assert_eq!(status_with(&app, &stored.get::<_, String>(0)).await, 401);

    let mut second = Visitor::logged_in(&replica).await;
    let csrf = second.get("/admin").await.field("csrf");
    assert_eq!(second.post("/admin/logout", &[("csrf", &csrf)]).await.status, 303);
    assert_eq!(status_with(&app, &session).await, 200, "the other session goes on");
    let csrf = visitor.get("/admin").await.field("csrf");
    assert_eq!(visitor.post("/admin/logout", &[("csrf", &csrf)]).await.status, 303);
    for app in [&app, &replica] {
        assert_eq!(status_with(app, &session).await, 401, "whoever kept the cookie");
    }
    assert_eq!(app.count("admin_sessions").await, 0);

    let expiring = Visitor::logged_in(&app).await.session().to_owned();
    app.execute("UPDATE admin_sessions SET expires_at = now()").await;
    assert_eq!(status_with(&app, &expiring).await, 401);
    Visitor::logged_in(&app).await;
    assert_eq!(app.count("admin_sessions").await, 1, "what has expired is deleted");
}

async fn status_with(app: &TestApp, session: &str) -> u16 {
    let mut visitor = Visitor::new(app);
    visitor.set_session(session.to_owned());
    visitor.get("/admin").await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_stranger_gets_depends_on_the_admin_token() {
    // Two servers with one token: anything derived from it alone, or with what the stranger sends, would be the same.
    let app = TestApp::start().await;
    let mut visitor = Visitor::new(&app);
    let page = visitor.get("/admin").await;
    let key = visitor.cookies[0].1.clone();
    let other_token = Settings { admin_token: Some("another token"), ..Settings::default() };
    let other = TestApp::start_with(other_token, None).await;
    let mut same_cookie = Visitor::new(&other);
    same_cookie.cookies.clone_from(&visitor.cookies);
    let same = same_cookie.get("/admin").await;
    assert_eq!(same.field("csrf"), page.field("csrf"), "the form's token comes from the cookie alone");
    assert_eq!(same_cookie.cookies[0].1, key);
    assert_ne!(Visitor::new(&app).get("/admin").await.field("csrf"), page.field("csrf"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_kilobytes_of_session_cookies_are_not_looked_at() {
    let app = TestApp::start().await;
    let visitor = Visitor::logged_in(&app).await;
    let good = format!("subledger_session={}", visitor.session());
    let wrong = format!("subledger_session={}", "0".repeat(64));
    let ask = async |cookie: String| answer(app.http.get(app.url("/events")).header(COOKIE, cookie)).await.status;
    assert_eq!(ask(format!("{wrong}; {good}")).await, 200);
    assert_eq!(ask(format!("{}; {good}", vec![wrong.as_str(); 1_200].join("; "))).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_admin_token_the_page_says_what_to_do() {
    let app = TestApp::start_with(Settings { admin_token: None, ..Settings::default() }, None).await;
    let mut visitor = Visitor::new(&app);
    for path in ["/admin", "/admin/events", "/admin/events/evt_1"] {
        let page = visitor.get(path).await;
        assert_eq!(page.status, 403, "{path}");
        page.has("ADMIN_TOKEN");
    }
    assert_eq!(visitor.post("/admin/login", &[("token", ""), ("csrf", "")]).await.status, 403);
    assert_eq!(visitor.get("/admin/style.css").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cookie_opens_the_json_routes_but_not_for_another_site() {
    let app = TestApp::start().await;
    let mut visitor = Visitor::logged_in(&app).await;
    let csrf = visitor.get("/admin").await.field("csrf");
    let cookie = format!("a=b; subledger_session={}", visitor.session());
    let ask = |method, path: &str| app.http.request(method, app.url(path)).header(COOKIE, &cookie);
    assert_eq!(answer(ask(Method::GET, "/events")).await.status, 200);
    let create = || ask(Method::POST, "/api/v1/accounts").json(&json!({"name": "Acme"}));
    let own = format!("http://{}", app.address);
    for (name, value) in [
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
        ("Origin", "https://evil.test"),
        ("Origin", "null"),
        ("Origin", "http://127.0.0.1:1"),
        ("Origin", &own.replace("127.0.0.1", "localhost")),
    ] {
        let with_token = create().header("X-CSRF-Token", &csrf);
        for request in [create(), with_token, ask(Method::POST, "/events/evt_1/replay")] {
            let refused = answer(request.header(name, value)).await;
            assert_eq!((refused.status, refused.error_code()), (403, "forbidden"), "{name}: {value}");
        }
        let form = visitor.http.post(app.url("/admin/logout")).header(name, value).body(format!("csrf={csrf}"));
        assert_eq!(visitor.send(form).await.status, 403, "{name}: {value}");
        let login = Visitor::new(&app).send(app.http.post(app.url("/admin/login")).header(name, value)).await;
        assert_eq!(login.status, 403, "{name}: {value}");
        assert_eq!(answer(ask(Method::GET, "/events").header(name, value)).await.status, 200, "it changes nothing");
        // The token itself is nothing that a browser adds.
        let token = app.http.post(app.url("/events/evt_1/replay")).bearer_auth(ADMIN_TOKEN).header(name, value);
        assert_eq!(answer(token).await.status, 404);
    }
    assert_eq!((app.count("accounts").await, app.count("admin_sessions").await), (0, 1));
    assert_eq!(answer(create()).await.status, 201);
    assert_eq!(answer(create().header("Sec-Fetch-Site", "same-origin").header("Origin", &own)).await.status, 201);
    // What a form of another origin can send is no JSON.
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/json"] {
        let request = ask(Method::POST, "/api/v1/accounts").header("Content-Type", content_type);
        let refused = answer(request.body(r#"{"name": "Acme"}"#)).await;
        assert_eq!((refused.status, refused.error_code()), (400, "invalid_request"), "{content_type}");
    }
    let by_token =
        app.http.post(app.url("/api/v1/accounts")).bearer_auth(ADMIN_TOKEN).header("Content-Type", "text/plain");
    assert_eq!(answer(by_token.body(r#"{"name": "Acme"}"#)).await.error_code(), "invalid_request");
    let untyped = answer(ask(Method::POST, "/api/v1/accounts").body(r#"{"name": "Acme"}"#)).await;
    assert_eq!((untyped.status, untyped.error_code()), (400, "invalid_request"));
    let typed = ask(Method::POST, "/api/v1/accounts").header("Content-Type", "Application/JSON; charset=utf-8");
    assert_eq!(answer(typed.body(r#"{"name": "Acme"}"#)).await.status, 201);
    // A token that is sent decides, and a wrong one is not made good by a cookie.
    let wrong = answer(ask(Method::GET, "/events").header(AUTHORIZATION, "Bearer wrong")).await;
    assert_eq!((wrong.status, wrong.error_code()), (401, "unauthorized"));
    // The page takes the token too.
    let page = app.http.get(app.url("/admin/events")).bearer_auth(ADMIN_TOKEN).send().await.unwrap();
    assert_eq!(page.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_without_the_sessions_token_changes_nothing() {
    let app = TestApp::start().await;
    let world = populate(&app).await;
    mend_subscriptions(&app).await;
    let mut visitor = Visitor::logged_in(&app).await;
    let other = Visitor::logged_in(&app).await.get("/admin").await.field("csrf");
    let (replay, link) =
        (format!("/admin/events/{}/replay", world.failing), format!("/admin/events/{}/link", world.parked));
    let account = world.account.to_string();
    for fields in [vec![], vec![("csrf", "")], vec![("csrf", "wrong")], vec![("csrf", other.as_str())]] {
        assert_eq!(visitor.post(&replay, &fields).await.status, 403, "{fields:?}");
        assert_eq!(visitor.post("/admin/logout", &fields).await.status, 403, "{fields:?}");
        let fields: Vec<_> = fields.into_iter().chain([("account", account.as_str())]).collect();
        assert_eq!(visitor.post(&link, &fields).await.status, 403, "{fields:?}");
    }
    assert_eq!(app.event_row(&world.failing).await, json!(null));
    assert_eq!(app.event_row(&world.parked).await["outcome"], "parked");
    let mut stranger = Visitor::new(&app);
    assert_eq!(stranger.post(&replay, &[("csrf", &other)]).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_carries_the_security_headers() {
    let app = TestApp::start().await;
    let world = populate(&app).await;
    let mut visitor = Visitor::new(&app);
    let mut pages = vec![visitor.get("/admin").await, visitor.post("/admin/login", &[]).await];
    visitor = Visitor::logged_in(&app).await;
    let event = format!("/admin/events/{}", world.hostile);
    let account = format!("/admin/accounts/{}", world.account);
    let paths = [
        "/admin",
        "/admin/events",
        "/admin/accounts",
        &event,
        &account,
        "/admin/search?q=none",
        "/admin/nothing",
        "/admin/login",
    ];
    for path in paths {
        pages.push(visitor.get(path).await);
    }
    pages.push(visitor.post("/admin/events", &[]).await);
    let statuses: Vec<_> = pages.iter().map(|page| page.status).collect();
    assert_eq!(statuses, [401, 400, 200, 200, 200, 200, 200, 404, 404, 303, 405]);
    for page in pages {
        let header = |name: &str| page.headers[name].to_str().unwrap().to_owned();
        let policy = header("content-security-policy");
        for part in [
            "default-src 'none'",
            "style-src 'self'",
            "form-action 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        ] {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("script-src"), "{policy}");
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("x-frame-options"), "DENY");
        assert_eq!(header("referrer-policy"), "same-origin");
        assert_eq!(header("cache-control"), "no-store");
        assert!(!page.body.contains("<script") && !page.body.contains(" style="), "{}", page.body);
        assert!(page.status == 303 || header("content-type") == "text/html; charset=utf-8");
    }
    let style = visitor.get("/admin/style.css").await;
    assert_eq!(style.headers["content-type"], "text/css; charset=utf-8");
    assert_eq!(style.headers["x-content-type-options"], "nosniff");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_wrote_is_shown_and_never_run() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    app.sql.execute("UPDATE accounts SET name = $1", &[&SCRIPT]).await.unwrap();
    let id = "evt_<script>/../x?y#z%2F\"'";
    let mut state = subscription("sub_1", "cus_1", "<script>", 5);
    state["items"]["data"][0]["price"]["id"] = json!(SCRIPT);
    let event = Event::new(id, "customer.subscription.updated", 100, state).with("api_version", json!(SCRIPT));
    assert_eq!(app.deliver(event).await.outcome(), "applied");
    let hostile_type =
        Event::new("evt_2", SCRIPT, 100, json!({"id": SCRIPT, "customer": SCRIPT, "subscription": SCRIPT}));
    assert_eq!(app.deliver(hostile_type).await.outcome(), "ignored");
    let mut visitor = Visitor::logged_in(&app).await;
    let encoded = "evt_%3Cscript%3E%2F..%2Fx%3Fy%23z%252F%22%27";
    let query: String = form_urlencoded::byte_serialize(SCRIPT.as_bytes()).collect();
    let paths = [
        "/admin".to_owned(),
        "/admin/events".to_owned(),
        format!("/admin/events?type={query}&customer={query}&starting_after={query}"),
        format!("/admin/events/{encoded}"),
        "/admin/events/evt_2".to_owned(),
        format!("/admin/accounts/{account}"),
        "/admin/accounts".to_owned(),
        format!("/admin/accounts?q={query}"),
        format!("/admin/search?q=none{query}"),
    ];
    for path in paths {
        let page = visitor.get(&path).await;
        assert!(page.body.contains("&#60;") || page.body.contains("&lt;"), "{path}: {}", page.body);
        assert!(!page.body.contains("<script") && !page.body.contains("<img"), "{path}: {}", page.body);
    }
    let page = visitor.get("/admin/events").await;
    page.has(&format!("href=\"/admin/events/{encoded}\""));
    assert_eq!(visitor.get(&format!("/admin/search?q={encoded}")).await.location(), format!("/admin/events/{encoded}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_can_be_narrowed_and_paged_through_without_gap_or_repetition() {
    let app = TestApp::start().await;
    let world = populate(&app).await;
    let mut visitor = Visitor::logged_in(&app).await;
    for (query, rows) in [
        (format!("subscription={}&status=stale", world.subscription), 1),
        ("type=customer.updated".to_owned(), 1),
        ("status=failed&type=&customer=".to_owned(), 1),
        (format!("customer=%20{}%20", world.parked_customer), 1),
        ("type=customer.subscription".to_owned(), 0),
        ("nonsense=1&type=customer.updated".to_owned(), 1),
        (format!("account={}&status=parked", world.account), 0),
    ] {
        let page = visitor.get(&format!("/admin/events?{query}")).await;
        assert_eq!((page.status, page.rows()), (200, rows), "{query}");
    }
    for wrong in ["account=x", "status=gone", "starting_after=evt_none"] {
        let page = visitor.get(&format!("/admin/events?{wrong}")).await;
        assert_eq!((page.status, page.rows()), (400, 0), "{wrong}");
        page.has("role=\"alert\"");
    }
    let mut seen = Vec::new();
    let mut next = Some("/admin/events?status=applied".to_owned());
    while let Some(path) = next {
        let page = visitor.get(&path).await;
        seen.extend(
            page.body.split("href=\"/admin/events/").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()),
        );
        let older = page.body.split_once("rel=\"next\" href=\"").map(|(_, rest)| rest.split('"').next().unwrap());
        next = older.map(|path| path.replace("&#38;", "&").replace("&amp;", "&"));
    }
    let all = usize::try_from(app.count("stripe_events WHERE outcome = 'applied'").await).unwrap();
    assert_eq!(seen.len(), all);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_search_leads_from_any_id_to_where_it_belongs() {
    let app = TestApp::start().await;
    let world = populate(&app).await;
    let mut visitor = Visitor::logged_in(&app).await;
    let account = format!("/admin/accounts/{}", world.account);
    let customer = app.one("SELECT stripe_customer_id FROM accounts").await.get::<_, String>(0);
    let local = app.local_trial(world.account).await;
    let invoice = app.one("SELECT id, payload #>> '{data,object,id}' FROM stripe_events WHERE payload #>> '{data,object,id}' LIKE 'in\\_%'").await;
    for (id, to) in [
        (world.applied.clone(), format!("/admin/events/{}", world.applied)),
        (format!("%20{}%0A", world.failing), format!("/admin/events/{}", world.failing)),
        (world.account.to_string().to_uppercase(), account.clone()),
        (local.to_string(), account.clone()),
        (customer, account.clone()),
        (world.subscription.clone(), format!("{account}#{}", world.subscription)),
        (world.parked_customer.clone(), format!("/admin/events?customer={}", world.parked_customer)),
        (invoice.get(1), format!("/admin/events/{}", invoice.get::<_, String>(0))),
    ] {
        let page = visitor.get(&format!("/admin/search?q={id}")).await;
        assert_eq!((page.status, page.location()), (303, to.as_str()), "{id}");
    }
    for nothing in ["evt_none", "%00", "9dd0bb5d-0000-4000-8000-000000000000", "%FF"] {
        let status = visitor.get(&format!("/admin/search?q={nothing}")).await.status;
        assert!(matches!(status, 404 | 303), "{nothing}: {status}");
    }
    for path in [
        "/admin/events/evt_none",
        "/admin/events/a%00b",
        "/admin/accounts/x",
        "/admin/accounts/9dd0bb5d-0000-4000-8000-000000000000",
    ] {
        assert_eq!(visitor.get(path).await.status, 404, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_event_is_replayed_from_its_page() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    break_subscriptions(&app).await;
    let event = Event::new("evt_1", "customer.subscription.updated", 100, subscription("sub_1", "cus_1", "active", 5));
    assert_eq!(app.deliver(&event).await.status, 500);
    let mut visitor = Visitor::logged_in(&app).await;
    let page = visitor.get("/admin/events/evt_1").await;
    page.has("few_seats");
    let csrf = page.field("csrf");
    let fields = [("csrf", csrf.as_str())];
    let again = visitor.post("/admin/events/evt_1/replay", &fields).await;
    assert_eq!((again.status, again.location()), (303, "/admin/events/evt_1?done=failed"));
    visitor.get(again.location()).await.has("The replay failed.");
    assert_eq!(app.count("event_failures").await, 2);
    visitor.get("/admin").await.has("1 event failing");

    mend_subscriptions(&app).await;
    let done = visitor.post("/admin/events/evt_1/replay", &fields).await;
    assert_eq!(done.location(), "/admin/events/evt_1?done=replayed");
    visitor.get(done.location()).await.has("Replayed: the event is applied.");
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 5);
    let unchanged = visitor.post("/admin/events/evt_1/replay", &fields).await;
    assert_eq!(unchanged.location(), "/admin/events/evt_1?done=unchanged");
    app.execute("UPDATE subscriptions SET current_period_end = now() + interval '1 day'").await;
    overview_with(&mut visitor, "All is well").await;
    assert_eq!(visitor.get("/admin/events/evt_1/replay").await.location(), "/admin/events/evt_1");
    assert_eq!(visitor.post("/admin/events/evt_none/replay", &fields).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_event_is_applied_by_linking_its_customer() {
    let app = TestApp::start().await;
    let taken = app.account_of("cus_2").await;
    let account = app.account().await;
    let event = Event::new("evt_1", "customer.subscription.updated", 100, subscription("sub_1", "cus_1", "active", 5));
    assert_eq!(app.deliver(&event).await.outcome(), "parked");
    let mut visitor = Visitor::logged_in(&app).await;
    let page = visitor.get("/admin/events/evt_1").await;
    page.has("Its customer belongs to no account yet.");
    let csrf = page.field("csrf");
    for asked in [account.to_string(), "ACM".to_owned()] {
        let page = visitor.get(&format!("/admin/events/evt_1/link?account={asked}")).await;
        page.has("Link this customer?");
        page.has(&format!(">Acme</a> <span class=\"id\">{account}</span>"));
        page.has(&format!("name=\"account\" value=\"{account}\""));
    }
    visitor.get("/admin/events/evt_1/link?account=Umbrella").await.has("No account matches");
    assert_eq!(visitor.get("/admin/events/evt_1/link").await.location(), "/admin/events/evt_1");
    assert_eq!(app.event_row("evt_1").await["outcome"], "parked", "looking links nothing");
    let nobody = "9dd0bb5d-0000-4000-8000-000000000000";
    for wrong in ["", "x", nobody] {
        let page = visitor.post("/admin/events/evt_1/link", &[("csrf", &csrf), ("account", wrong)]).await;
        assert_eq!(page.location(), "/admin/events/evt_1?done=no-account", "{wrong}");
    }
    let done = visitor.post("/admin/events/evt_1/link", &[("csrf", &csrf), ("account", &format!(" {account} "))]).await;
    assert_eq!(done.location(), "/admin/events/evt_1?done=linked");
    visitor.get(done.location()).await.has("The customer is linked; the event is applied.");
    assert_eq!(app.subscription("sub_1").await["account_id"], json!(account));
    let page = visitor.post("/admin/events/evt_1/link", &[("csrf", &csrf), ("account", &taken.to_string())]).await;
    assert_eq!(page.location(), "/admin/events/evt_1?done=taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_is_unlinked_from_the_accounts_page_after_asking_back() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    let mut visitor = Visitor::logged_in(&app).await;
    let path = format!("/admin/accounts/{account}");
    let page = visitor.get(&path).await;
    let unlink = format!("{path}/unlink?customer=cus_1");
    page.has(&format!("href=\"{unlink}\""));
    let asked = visitor.get(&unlink).await;
    asked.has("Unlink this customer?");
    asked.has(&format!("<span class=\"id\">cus_1</span> from <a href=\"{path}\">Acme</a>"));
    let csrf = asked.field("csrf");
    let form = format!("{path}/unlink");
    assert_eq!(visitor.post(&form, &[("csrf", "wrong"), ("customer", "cus_1")]).await.status, 403);
    assert_eq!(app.count("accounts WHERE stripe_customer_id = 'cus_1'").await, 1);
    for (customer, done) in
        [("cus_2", "not-linked"), ("cus_1", "unlinked"), ("cus_1", "not-linked"), ("\0", "not-linked")]
    {
        let answer = visitor.post(&form, &[("csrf", &csrf), ("customer", customer)]).await;
        assert_eq!(answer.location(), format!("{path}?done={done}"), "{customer}");
    }
    visitor.get(&format!("{path}?done=unlinked")).await.has("The customer is unlinked.");
    assert_eq!(app.count("accounts WHERE stripe_customer_id IS NULL").await, 1);
    assert_eq!(visitor.get(&unlink).await.location(), path, "there is nothing to ask");
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_found_and_paged_through() {
    let app = TestApp::start().await;
    let mut visitor = Visitor::logged_in(&app).await;
    visitor.get("/admin/accounts").await.has("No account yet");
    app.execute("INSERT INTO accounts (name, stripe_customer_id) SELECT 'Acme ' || n, 'cus_' || n FROM generate_series(1, 120) n").await;
    let (mut rows, mut next) = (0, Some("/admin/accounts?q=acme".to_owned()));
    while let Some(path) = next {
        let page = visitor.get(&path).await;
        rows += page.body.matches("data-label=\"Account\"").count();
        let older = page.body.split_once("rel=\"next\" href=\"").map(|(_, rest)| rest.split('"').next().unwrap());
        next = older.map(|path| path.replace("&#38;", "&").replace("&amp;", "&"));
    }
    assert_eq!(rows, 120);
    let one = visitor.get("/admin/accounts?q=%20cus_7%20").await;
    assert_eq!(one.body.matches("data-label=\"Account\"").count(), 1);
    one.has(">Acme 7</a>");
    visitor.get("/admin/accounts?q=Umbrella").await.has("No account matches");
    assert_eq!(visitor.get("/admin/accounts?starting_after=x").await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_account_in_an_incident_says_that_what_it_shows_may_be_out_of_date() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    break_subscriptions(&app).await;
    let mut event = created("evt_1", 100, subscription("sub_1", "cus_1", "active", 5));
    assert_eq!(app.deliver(&event).await.status, 500);
    let mut visitor = Visitor::logged_in(&app).await;
    let path = format!("/admin/accounts/{account}");
    visitor.get(&path).await.has("1 event of this account is failing");
    mend_subscriptions(&app).await;
    event.0["id"] = json!("evt_2");
    let item = &mut event.0["data"]["object"]["items"]["data"][0];
    (item["current_period_start"], item["current_period_end"]) = (json!(1_000_000), json!(2_000_000));
    assert_eq!(app.deliver(&event).await.outcome(), "applied");
    let page = visitor.get(&path).await;
    page.has("<h2>Entitled</h2>");
    page.has("This end has passed");
    page.has("verdict is-parked");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_account_says_why_it_is_entitled_and_tells_its_story_in_stripes_order() {
    let app = TestApp::start().await;
    let world = populate(&app).await;
    let mut visitor = Visitor::logged_in(&app).await;
    let page = visitor.get(&format!("/admin/accounts/{}", world.account)).await;
    page.has("Northwind Traders");
    page.has(&format!("because subscription {} is active", world.subscription));
    assert_eq!(page.body.matches("is-stale").count(), 1);
    let story = page.body.split_once("class=\"story\"").unwrap().1;
    let times: Vec<_> = story.split("datetime=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(times.len() > 10 && times.is_sorted(), "{times:?}");

    let bare = app.one("INSERT INTO accounts DEFAULT VALUES RETURNING id").await.get::<_, uuid::Uuid>(0);
    let page = visitor.get(&format!("/admin/accounts/{bare}")).await;
    page.has("Not entitled");
    page.has("because the account has no subscription");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_counts_what_came_and_stands_when_the_database_does_not() {
    let app = TestApp::start().await;
    let mut visitor = Visitor::logged_in(&app).await;
    let empty = visitor.get("/admin").await;
    empty.has("No event has come yet");
    empty.has(&format!("stripe listen --forward-to {}/api/v1/webhooks/stripe", app.address));
    let world = populate(&app).await;
    let page = visitor.get("/admin").await;
    page.has("1 event failing");
    page.has(&world.failing);
    let in_all = app.count("stripe_events WHERE received_at >= now() - interval '24 hours'").await;
    page.has(&format!("{in_all} in 24 hours"));

    let pending = TestApp::start().await;
    pending.execute("DELETE FROM __diesel_schema_migrations").await;
    let mut visitor = Visitor::logged_in(&pending).await;
    let page = visitor.get("/admin").await;
    assert_eq!(page.status, 503);
    page.has("A migration is pending");
    let name = name(&pending.database);
    app.execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
    app.sql.query(end, &[&name]).await.unwrap();
    let page = visitor.get("/admin").await;
    assert_eq!(page.status, 503);
    page.has("The database does not answer");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let overview = pending.http.get(pending.url("/admin")).bearer_auth(ADMIN_TOKEN).header(ACCEPT, "text/html");
    let overview = overview.send().await.unwrap();
    assert_eq!(overview.status(), 503);
    assert!(overview.text().await.unwrap().contains("PostgreSQL runs and DATABASE_URL leads to it"));
    assert_eq!(visitor.get("/admin/events").await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_open_the_overview_at_once_share_one_reading() {
    let app = TestApp::start().await;
    let locker = app.database.client().await;
    locker.batch_execute("BEGIN; LOCK TABLE stripe_events IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let pages = (0..12).map(|_| {
        let page = app.http.get(app.url("/admin")).bearer_auth(ADMIN_TOKEN).header(ACCEPT, "text/html");
        async { page.send().await.unwrap().status().as_u16() }
    });
    let counting = "pg_stat_activity WHERE query LIKE '%date_trunc(''hour''%' AND wait_event_type = 'Lock'
                    AND datname = current_database()";
    let release = async {
        app.wait_for_count(counting, 1, Duration::from_secs(5)).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let sessions = app.count(counting).await;
        locker.batch_execute("ROLLBACK").await.unwrap();
        sessions
    };
    let (statuses, sessions) = tokio::join!(futures_util::future::join_all(pages), release);
    assert_eq!((statuses, sessions), (vec![200; 12], 1));
}

/// The overview, once it holds the text: findings are read anew after a short time.
async fn overview_with(visitor: &mut Visitor<'_>, text: &str) -> Page {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let page = visitor.get("/admin").await;
        if page.body.contains(text) || Instant::now() > deadline {
            page.has(text);
            return page;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_lists_the_findings_of_doctor_and_links_to_overdue_subscriptions() {
    let app =
        TestApp::start_with(Settings { overdue_after: Duration::from_secs(1), ..Settings::default() }, None).await;
    let mut visitor = Visitor::logged_in(&app).await;
    visitor.get("/admin").await.has("Everything is ready for the first one.");
    let account = app.account_of("cus_1").await;
    for id in ["sub_1", "sub_2"] {
        app.deliver(created(&format!("evt_{id}"), 100, subscription(id, "cus_1", "active", 5))).await;
    }
    app.execute("UPDATE subscriptions SET current_period_end = now() + interval '1 day'").await;
    let well = overview_with(&mut visitor, "All is well").await;
    assert!(!well.body.contains("Problems found"));

    app.execute("UPDATE subscriptions SET current_period_end = now() - interval '1 day'").await;
    let page = overview_with(&mut visitor, "Problems found").await;
    page.has("Something needs a look");
    page.has("finds 1 problem, listed below");
    page.has("2 subscriptions are overdue: their period ended and no event followed (sub_1, sub_2)");
    page.has(&format!("<a class=\"id\" href=\"/admin/accounts/{account}\">sub_2</a>"));
    assert!(!page.body.contains("All is well"));

    app.execute("UPDATE subscriptions SET status = 'canceled'; GRANT SELECT ON accounts TO PUBLIC").await;
    let page = overview_with(&mut visitor, "everybody may SELECT on table accounts").await;
    page.has("REVOKE ALL ON accounts FROM PUBLIC");
    assert!(!page.body.contains("All is well") && !page.body.contains("are overdue"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_does_not_wait_for_checks_that_take_long() {
    let app = TestApp::start().await;
    let mut visitor = Visitor::logged_in(&app).await;
    app.deliver(Event::new("evt_1", "charge.succeeded", 100, json!({"id": "ch_1"}))).await;
    let other = app.database.client().await;
    other.batch_execute("BEGIN; LOCK TABLE subscriptions").await.unwrap();
    let began = Instant::now();
    let page = visitor.get("/admin").await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    page.has("The checks of `subledger doctor` have not been completed yet.");
    assert!(page.status == 200 && !page.body.contains("All is well"));
    other.batch_execute("ROLLBACK").await.unwrap();
    overview_with(&mut visitor, "All is well").await;
}

/// A database's name.
fn name(database: &Database) -> String {
    database.url().rsplit_once('/').unwrap().1.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_gets_errors_in_the_form_of_every_other_one() {
    let app = TestApp::start().await;
    for (method, path, status, code) in [
        (Method::GET, "/admin", 401, "unauthorized"),
        (Method::GET, "/admin/events", 401, "unauthorized"),
        (Method::GET, "/admin/nowhere", 404, "not_found"),
        (Method::DELETE, "/admin", 405, "method_not_allowed"),
        (Method::POST, "/admin/login", 400, "invalid_request"),
    ] {
        let refused = answer(app.http.request(method.clone(), app.url(path))).await;
        assert_eq!((refused.status, refused.error_code()), (status, code), "{method} {path}");
    }
    let nobody = TestApp::start_with(Settings { admin_token: None, ..Settings::default() }, None).await;
    let refused = answer(nobody.http.get(nobody.url("/admin")).header(ACCEPT, "application/json")).await;
    assert_eq!((refused.status, refused.error_code()), (403, "forbidden"));
}

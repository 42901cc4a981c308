//! The page for people in a real browser. Where none is installed these are skipped, and say so.
//!
//! With `SCREENSHOTS=<folder>` each page's picture is saved there.

use std::path::PathBuf;

use crate::support::app::ADMIN_TOKEN;
use crate::support::world::{World, mend_subscriptions, populate};
use crate::support::{Browser, TestApp};

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_logs_in_filters_looks_at_a_hostile_event_and_replays_a_failed_one() {
    let Some(browser) = Browser::start().await else { return };
    let app = TestApp::start().await;
    let world = populate(&app).await;
    browser.open(app.url("/admin/events?status=ignored")).await;
    browser.type_into("#token", "wrong").await;
    browser.click("main button").await;
    browser.until("document.querySelector('[role=alert]')").await;
    assert!(browser.text("[role=alert]").await.contains("not the admin token"));
    log_in(&browser).await;
    browser.until("location.pathname == '/admin/events'").await;
    assert_eq!(browser.url().await.query(), Some("status=ignored"), "a login leads to where one wanted to go");

    browser.type_into("#type", "customer.updated").await;
    browser.click(".filters button").await;
    browser.until("location.search.includes('customer.updated')").await;
    assert_eq!(browser.run("return document.querySelectorAll('tbody tr').length").await, 1);
    browser.click("tbody a.type").await;
    browser.until("document.querySelector('.payload')").await;
    assert!(browser.text(".payload").await.contains("<script>document.title='taken over'"));
    assert!(browser.title().await.starts_with(&format!("customer.updated {}", world.hostile)));
    assert!(!browser.has_alert().await);
    assert_eq!(browser.run("return document.querySelectorAll('script, main img').length").await, 0);

    mend_subscriptions(&app).await;
    browser.type_into("#search", &world.failing).await;
    browser.click(".search button").await;
    browser.until(&format!("location.pathname == '/admin/events/{}'", world.failing)).await;
    assert!(browser.text(".head").await.contains("failed"));
    browser.click(".remedies button").await;
    browser.until("document.querySelector('[role=status]')").await;
    assert_eq!(browser.text("[role=status]").await, "Replayed: the event is applied.");
    assert_eq!(app.event_row(&world.failing).await["outcome"], "applied");

    browser.click(".logout button").await;
    browser.until("document.querySelector('#token')").await;
    browser.open(app.url("/admin/events")).await;
    assert_eq!(browser.title().await, "Log in · subledger");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_can_be_used_with_the_keyboard_alone() {
    let Some(browser) = Browser::start().await else { return };
    let app = TestApp::start().await;
    let world = populate(&app).await;
    browser.open(app.url("/admin")).await;
    browser.until("document.activeElement.matches('#token')").await;
    browser.press(ADMIN_TOKEN).await;
    browser.press(crate::support::browser::ENTER).await;
    browser.until("document.querySelector('.tiles')").await;

    assert_eq!(browser.tab_to(".skip").await, 1, "the first thing is the way past the navigation");
    let shown = "return document.querySelector('.skip').getBoundingClientRect().top >= 0";
    assert_eq!(browser.run(shown).await, true);
    browser.press(crate::support::browser::ENTER).await;
    browser.until("location.hash == '#main'").await;
    browser.tab_to(".failing a.type").await;
    let outline = "return getComputedStyle(document.activeElement).outlineStyle";
    assert_eq!(browser.run(outline).await, "solid", "the focus is seen");
    browser.press(crate::support::browser::ENTER).await;
    browser.until(&format!("location.pathname == '/admin/events/{}'", world.failing)).await;

    mend_subscriptions(&app).await;
    browser.tab_to(".remedies button").await;
    browser.press(crate::support::browser::ENTER).await;
    browser.until("document.querySelector('[role=status]')").await;
    assert_eq!(app.event_row(&world.failing).await["outcome"], "applied");
    browser.tab_to("#search").await;
    browser.press(&world.subscription).await;
    browser.press(crate::support::browser::ENTER).await;
    browser.until(&format!("location.pathname == '/admin/accounts/{}'", world.account)).await;
    assert_eq!(browser.url().await.fragment(), Some(world.subscription.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_fits_its_window_and_can_be_read_in_light_and_dark() {
    let Some(browser) = Browser::start().await else { return };
    let (app, empty) = (TestApp::start().await, TestApp::start().await);
    let world = populate(&app).await;
    browser.open(app.url("/admin")).await;
    look(&browser, "login").await;
    log_in(&browser).await;
    for (name, path) in pages(&world) {
        browser.open(app.url(&path)).await;
        look(&browser, name).await;
    }
    browser.open(empty.url("/admin")).await;
    log_in(&browser).await;
    look(&browser, "empty").await;
    browser.open(empty.url("/admin/events")).await;
    look(&browser, "empty-events").await;
}

fn pages(world: &World) -> [(&'static str, String); 11] {
    [
        ("overview", "/admin".to_owned()),
        ("events", "/admin/events".to_owned()),
        ("nothing-matches", "/admin/events?status=failed&type=invoice.paid&account=x".to_owned()),
        ("event-applied", format!("/admin/events/{}", world.applied)),
        ("event-failing", format!("/admin/events/{}", world.failing)),
        ("event-parked", format!("/admin/events/{}", world.parked)),
        ("account", format!("/admin/accounts/{}", world.account)),
        ("accounts", "/admin/accounts".to_owned()),
        ("link", format!("/admin/events/{}/link?account=north", world.parked)),
        ("unlink", format!("/admin/accounts/{}/unlink?customer=cus_TqB7mYk2hVd9Zs", world.account)),
        ("not-found", "/admin/search?q=evt_1SPw4tLdgr4Fx9QzR8nVYxTeevt_1SPw4tLdgr4Fx9QzR8nVYxTe".to_owned()),
    ]
}

async fn log_in(browser: &Browser) {
    browser.type_into("#token", ADMIN_TOKEN).await;
    browser.click("main button").await;
    browser.until("document.querySelector('.logout')").await;
}

/// Looks at the present page in every size and both schemes.
async fn look(browser: &Browser, name: &str) {
    for width in [360, 390, 768, 1280, 1920] {
        browser.be_wide(width).await;
        let sideways = browser.run("return document.documentElement.scrollWidth - window.innerWidth").await;
        assert!(sideways.as_i64().unwrap() <= 0, "{name} scrolls sideways by {sideways} at {width}");
    }
    for scheme in ["light", "dark"] {
        browser.prefer(scheme).await;
        for width in [360, 1280] {
            browser.be_wide(width).await;
            let faint = browser.run(FAINT_TEXT).await;
            assert_eq!(faint, serde_json::json!([]), "{name} in {scheme}: text that is too faint");
            if let Some(folder) = screenshots() {
                browser.screenshot(folder.join(format!("{name}-{scheme}-{width}.png"))).await;
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "concerns the tests alone")]
fn screenshots() -> Option<PathBuf> {
    std::env::var_os("SCREENSHOTS").map(PathBuf::from)
}

/// Texts whose contrast with what is behind them is below 4.5 (WCAG 2.2, 1.4.3), with their ratio.
const FAINT_TEXT: &str = "
    const parse = (color) => {
        const numbers = color.match(/[\\d.]+/g).map(Number);
        const scale = color.startsWith('color(') ? 255 : 1;
        return [numbers[0] * scale, numbers[1] * scale, numbers[2] * scale, numbers[3] ?? 1];
    };
    const luminance = ([r, g, b]) => {
        const [R, G, B] = [r, g, b].map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * R + 0.7152 * G + 0.0722 * B;
    };
    const behind = (element) => {
        for (let one = element; one; one = one.parentElement) {
            const color = parse(getComputedStyle(one).backgroundColor);
            if (color[3] === 1) return color;
        }
        return [255, 255, 255, 1];
    };
    const faint = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.textContent.trim() || !element.checkVisibility() || element.closest('svg')) continue;
        const [one, other] = [parse(getComputedStyle(element).color), behind(element)].map(luminance);
        const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        if (ratio < 4.5) faint.push(`${ratio.toFixed(2)} ${walker.currentNode.textContent.trim().slice(0, 40)}`);
    }
    return faint;
";

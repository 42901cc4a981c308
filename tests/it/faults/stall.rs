//! A database that neither answers nor hangs up: a switch that drops packets, a host that has died.

use std::time::{Duration, Instant};

use super::behind_proxy;
use crate::support::app::{answer, answers_again, next_check};
use crate::support::events::{created, subscription, updated};
use crate::support::{Settings, TestApp};

fn impatient() -> Settings {
    Settings { pool_size: 2, pool_timeout: Duration::from_millis(500), ..Settings::default() }
}

async fn check_unavailable(app: &TestApp, event: &str, within: Duration) {
    let started = Instant::now();
    let answer = app.deliver(updated(event, 200, subscription("sub_1", "cus_1", "active", 7))).await;
    assert_eq!((answer.status, answer.error_code()), (503, "unavailable"), "{answer:?}");
    assert!(started.elapsed() < within, "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stall_is_answered_with_503_and_what_was_under_way_goes_on_after_it() {
    let (proxy, app) = behind_proxy(impatient()).await;
    app.account_of("cus_1").await;
    assert_eq!(app.deliver(created("evt_1", 100, subscription("sub_1", "cus_1", "active", 5))).await.status, 200);
    proxy.stall();
    let event = updated("evt_2", 150, subscription("sub_1", "cus_1", "active", 6));
    let held = app.deliver(&event);
    let meanwhile = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        // The second connection opens without end; nobody waits for it longer than for one of the pool.
        check_unavailable(&app, "evt_3", Duration::from_secs(3)).await;
        let health = answer(app.http.get(app.url("/health"))).await;
        assert_eq!((health.status, &health.body["database"]), (503, &"unavailable".into()));
        proxy.resume();
    };
    let (held, ()) = tokio::join!(held, meanwhile);
    assert_eq!((held.status, held.outcome()), (200, "applied"), "{held:?}");
    next_check().await;
    assert_eq!(answer(app.http.get(app.url("/health"))).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_fell_silent_for_good_is_given_up_and_the_next_one_used_without_a_restart() {
    let (proxy, app) = behind_proxy(impatient()).await;
    app.account_of("cus_1").await;
    assert_eq!(app.deliver(created("evt_1", 100, subscription("sub_1", "cus_1", "active", 5))).await.status, 200);
    proxy.stall();
    // One is held in the pool's only open connection until that is given up; the others wait for it in vain.
    let held = async {
        let started = Instant::now();
        let answer = app.deliver(updated("evt_2", 200, subscription("sub_1", "cus_1", "active", 7))).await;
        // 503, unless the next host answers before it is tried again. Measured: after 1.9 s.
        assert!([200, 503].contains(&answer.status), "{answer:?}");
        assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    };
    let refused = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        check_unavailable(&app, "evt_3", Duration::from_secs(3)).await;
    };
    let later = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        check_unavailable(&app, "evt_4", Duration::from_secs(3)).await;
        proxy.serve_new();
    };
    tokio::join!(held, async { tokio::join!(refused, later) });
    answers_again(&app).await;
    for event in ["evt_2", "evt_3", "evt_4"] {
        let answer = app.deliver(updated(event, 200, subscription("sub_1", "cus_1", "active", 7))).await;
        assert_eq!(answer.status, 200, "{event}: {answer:?}");
    }
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 7);
}

//! The subscriptions of an account in pages: an account may have hundreds.

use serde::Deserialize;
use uuid::Uuid;

use super::format::account_path;

/// The number of subscriptions of a page.
const PAGE_LENGTH: usize = 25;

/// The query: the number of the page, counted from 1.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default)]
pub struct SubscriptionsQuery {
    subscriptions: usize,
}

impl Default for SubscriptionsQuery {
    fn default() -> Self {
        Self { subscriptions: 1 }
    }
}

/// The links to the pages before and after this one.
#[derive(Debug)]
pub struct Paging {
    /// `26 to 50 of 500`; `None` if there is only one page.
    pub range: Option<String>,
    pub previous: Option<String>,
    pub next: Option<String>,
}

/// The rows of the page that `query` asks for, or of the last page if there are fewer.
pub fn page_of<T>(account: Uuid, rows: Vec<T>, query: SubscriptionsQuery) -> (Vec<T>, Paging) {
    let total = rows.len();
    let last = total.div_ceil(PAGE_LENGTH).max(1);
    let number = query.subscriptions.clamp(1, last);
    let first = (number - 1) * PAGE_LENGTH;
    let rows: Vec<_> = rows.into_iter().skip(first).take(PAGE_LENGTH).collect();
    let paging = Paging {
        range: (last > 1).then(|| format!("{} to {} of {total}", first + 1, first + rows.len())),
        previous: (number > 1).then(|| path_of_page(account, number - 1)),
        next: (number < last).then(|| path_of_page(account, number + 1)),
    };
    (rows, paging)
}

/// The page of an account that shows the subscription at this position, counted from 0.
pub fn path_of_position(account: Uuid, position: i64) -> String {
    path_of_page(account, usize::try_from(position).unwrap_or_default() / PAGE_LENGTH + 1)
}

fn path_of_page(account: Uuid, number: usize) -> String {
    let path = account_path(account);
    if number == 1 { path } else { format!("{path}?subscriptions={number}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_on_one_page_and_its_position_leads_there() {
        let account = Uuid::nil();
        let all: Vec<_> = (0..60).collect();
        let page = |number| page_of(account, all.clone(), SubscriptionsQuery { subscriptions: number });
        let rows: Vec<_> = (1..=3).flat_map(|number| page(number).0).collect();
        assert_eq!(rows, all);
        assert_eq!(page(3).1.range.as_deref(), Some("51 to 60 of 60"));
        assert_eq!((page(3).1.next, page(1).1.previous), (None, None));
        assert_eq!(page(usize::MAX).0, page(3).0);
        assert_eq!(page(2).1.next.as_deref(), Some(path_of_position(account, 50).as_str()));
        assert_eq!(path_of_position(account, 24), account_path(account));
        assert_eq!(page_of::<i32>(account, Vec::new(), SubscriptionsQuery::default()).1.range, None);
    }
}

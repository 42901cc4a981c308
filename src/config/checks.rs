//! Checks of values that parse but cannot work (refused) or are surely not meant (a warning at the start). Pure.

use crate::stripe::trust::Mode;

/// A token or secret that is shorter can be guessed.
const MIN_SECRET_CHARS: usize = 16;

/// The statuses of a subscription that Stripe documents.
///
/// Source: <https://docs.stripe.com/api/subscriptions/object#subscription_object-status>.
const STATUSES: [&str; 8] =
    ["active", "trialing", "past_due", "unpaid", "paused", "incomplete", "incomplete_expired", "canceled"];

/// Words of other programs for a log level. `env_logger` takes them for the name of a module.
const NOT_LEVELS: [&str; 10] =
    ["warning", "err", "information", "notice", "verbose", "critical", "fatal", "panic", "all", "none"];

/// Why `secret` cannot be a webhook endpoint's signing secret.
pub(super) fn webhook_secret_problem(secret: &str) -> Option<&'static str> {
    if secret.is_empty() {
        // An empty key would let anybody sign.
        return Some("a secret is empty");
    }
    if secret == "whsec_" {
        return Some("whsec_ is only the beginning of a secret");
    }
    if is_api_key(secret) {
        return Some("it holds an API key; the signing secret of the webhook endpoint begins with whsec_");
    }
    if secret.starts_with("we_") {
        return Some("it holds the endpoint's id; the endpoint's signing secret begins with whsec_");
    }
    placeholder_problem(secret)
}

/// Why `key` cannot be a secret API key.
pub(super) fn api_key_problem(key: &str) -> Option<&'static str> {
    if key.starts_with("pk_") {
        return Some(
            "it is a publishable key, which cannot read subscriptions; use a secret key (sk_…) or a restricted key (rk_…)",
        );
    }
    if key.starts_with("whsec_") {
        return Some("it is a webhook signing secret; use a secret key (sk_…) or a restricted key (rk_…)");
    }
    if ["sk_live_", "sk_test_", "rk_live_", "rk_test_"].contains(&key) {
        return Some("it is only the beginning of a key");
    }
    placeholder_problem(key)
}

/// Why `token` cannot be sent in an `Authorization` header.
pub(super) fn admin_token_problem(token: &str) -> Option<&'static str> {
    placeholder_problem(token)
}

/// Secrets of every kind are printable ASCII; `…`, `...` and `<…>` stand for one in documentation.
fn placeholder_problem(secret: &str) -> Option<&'static str> {
    let is_placeholder =
        secret.contains('…') || secret.ends_with("...") || (secret.starts_with('<') && secret.ends_with('>'));
    if is_placeholder {
        return Some("it is a placeholder from the documentation; put the real value in its place");
    }
    let is_printable = secret.bytes().all(|byte| byte.is_ascii_graphic());
    (!is_printable).then_some("it contains white space or a character that is not printable ASCII")
}

fn is_api_key(text: &str) -> bool {
    ["sk_", "rk_", "pk_"].iter().any(|prefix| text.starts_with(prefix))
}

/// Why `statuses` would entitle nobody.
pub(super) fn statuses_problem(statuses: &[String]) -> Option<String> {
    if statuses.is_empty() {
        return Some("it names no status, so nobody would be entitled".to_owned());
    }
    let is_known = |status: &String| STATUSES.contains(&status.as_str());
    (!statuses.iter().any(is_known)).then(|| {
        let (given, known) = (statuses.join(","), STATUSES.join(", "));
        format!("{given:?} names none of Stripe's statuses ({known})")
    })
}

/// What is worth a warning at the start, each a line that names its variable and shows no secret.
#[derive(Debug)]
pub(super) struct Given<'a> {
    pub(super) has_database: bool,
    pub(super) mode: Mode,
    pub(super) webhook_secrets: Vec<&'a str>,
    pub(super) api_key: Option<&'a str>,
    pub(super) admin_token: Option<&'a str>,
    pub(super) statuses: &'a [String],
}

impl Given<'_> {
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.has_database && self.mode == Mode::Any {
            warnings.push(
                "STRIPE_MODE: it is any, so test-mode events change the same rows as live ones; set it to live or test"
                    .to_owned(),
            );
        }
        self.warn_of_secrets(&mut warnings);
        for status in self.statuses.iter().filter(|status| !STATUSES.contains(&status.as_str())) {
            warnings.push(format!("ENTITLED_STATUSES: Stripe documents no status {status:?}; is it misspelt?"));
        }
        warnings
    }

    fn warn_of_secrets(&self, warnings: &mut Vec<String>) {
        let is_short = |secret: &str| secret.chars().count() < MIN_SECRET_CHARS;
        for (index, secret) in self.webhook_secrets.iter().enumerate() {
            let number = index + 1;
            match secret.strip_prefix("whsec_") {
                None => warnings.push(format!(
                    "STRIPE_WEBHOOK_SECRET: secret {number} does not begin with whsec_, as Stripe's secrets do"
                )),
                Some(rest) if is_short(rest) => warnings.push(format!(
                    "STRIPE_WEBHOOK_SECRET: secret {number} is short enough to be guessed; whoever guesses it can send events"
                )),
                Some(_) => {}
            }
        }
        if self.admin_token.is_some_and(is_short) {
            warnings.push(format!(
                "ADMIN_TOKEN: it has fewer than {MIN_SECRET_CHARS} characters and can be guessed; `openssl rand -hex 32` makes a good one"
            ));
        }
        let Some(key) = self.api_key else { return };
        match Mode::of_key(key) {
            None if !is_api_key(key) => {
                warnings.push("STRIPE_SECRET_KEY: it does not begin with sk_ or rk_, as Stripe's keys do".to_owned());
            }
            Some(mode) if self.mode != Mode::Any && mode != self.mode => warnings.push(format!(
                "STRIPE_MODE: it is {}, but STRIPE_SECRET_KEY is a {mode}-mode key, which finds none of those objects",
                self.mode
            )),
            _ => {}
        }
    }
}

/// A word in `filter` that was meant as a level and is none.
pub(super) fn misread_level(filter: &str) -> Option<&str> {
    let (directives, _) = filter.split_once('/').unwrap_or((filter, ""));
    let mut words = directives.split(',').map(str::trim);
    words.find(|word| NOT_LEVELS.iter().any(|not_level| word.eq_ignore_ascii_case(not_level)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_that_cannot_work_are_refused() {
        for secret in ["", "whsec_", "whsec_…", "whsec_...", "<whsec>", "sk_test_1", "pk_live_1", "we_1", "whsec_a b"]
        {
            assert!(webhook_secret_problem(secret).is_some(), "{secret:?}");
        }
        for key in ["pk_live_1", "pk_test_1", "whsec_1", "sk_live_", "sk_live_…", "sk_test_...", "sk_test_1\n2"] {
            assert!(api_key_problem(key).is_some(), "{key:?}");
        }
        for token in ["…", "two words", "<token>", "a\nb"] {
            assert!(admin_token_problem(token).is_some(), "{token:?}");
        }
        for secret in ["whsec_test", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "anything"] {
            assert_eq!(webhook_secret_problem(secret), None, "{secret:?}");
        }
        assert_eq!((api_key_problem("rk_live_1"), admin_token_problem("t0ken+/=")), (None, None));
    }

    #[test]
    fn statuses_that_entitle_nobody_are_refused() {
        let problem = |list: &str| statuses_problem(&list.split(',').map(str::to_owned).collect::<Vec<_>>());
        assert!(problem("activ").is_some_and(|problem| problem.contains("activ") && problem.contains("past_due")));
        assert!(problem("Active").is_some() && statuses_problem(&[]).is_some());
        assert_eq!((problem("active"), problem("hibernating,unpaid")), (None, None));
    }

    #[test]
    fn a_word_that_is_no_level_is_found() {
        for (filter, word) in [
            ("warning", Some("warning")),
            ("subledger=debug,Warning", Some("Warning")),
            ("warn", None),
            ("subledger", None),
            ("info,actix_http=off", None),
            ("info/warning", None),
        ] {
            assert_eq!(misread_level(filter), word, "{filter}");
        }
    }

    #[test]
    fn a_warning_names_its_variable_and_shows_no_secret() {
        let statuses = ["active".to_owned(), "activ".to_owned()];
        let given = Given {
            has_database: true,
            mode: Mode::Any,
            webhook_secrets: vec!["hunter2", "whsec_hunter2"],
            api_key: Some("hunter2"),
            admin_token: Some("hunter2"),
            statuses: &statuses,
        };
        let warnings = given.warnings();
        for variable in
            ["STRIPE_MODE", "STRIPE_WEBHOOK_SECRET", "STRIPE_SECRET_KEY", "ADMIN_TOKEN", "ENTITLED_STATUSES"]
        {
            assert!(warnings.iter().any(|warning| warning.starts_with(&format!("{variable}: "))), "{variable}");
        }
        assert!(warnings.iter().all(|warning| !warning.contains("hunter2") && !warning.contains('\n')), "{warnings:?}");
        let wrong_mode = Given { mode: Mode::Live, api_key: Some("rk_test_1"), ..given };
        assert!(wrong_mode.warnings().iter().any(|warning| warning.starts_with("STRIPE_MODE: it is live, but")));
    }

    #[test]
    fn a_good_configuration_has_no_warning() {
        let statuses = ["active".to_owned(), "past_due".to_owned()];
        let given = Given {
            has_database: true,
            mode: Mode::Live,
            webhook_secrets: vec!["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
            api_key: Some("rk_live_1"),
            admin_token: Some("0123456789abcdef"),
            statuses: &statuses,
        };
        assert_eq!(given.warnings(), Vec::<String>::new());
        let private = Given { has_database: false, mode: Mode::Any, ..given };
        assert_eq!(private.warnings(), Vec::<String>::new());
    }
}

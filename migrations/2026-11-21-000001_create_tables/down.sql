DROP TABLE event_failures;
DROP TABLE stripe_events;
DROP TABLE subscriptions;
DROP TABLE account_customers;
DROP TABLE accounts;

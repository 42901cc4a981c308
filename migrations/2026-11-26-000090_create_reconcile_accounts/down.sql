DROP TABLE reconcile_accounts;

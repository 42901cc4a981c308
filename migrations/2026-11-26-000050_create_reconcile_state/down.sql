DROP TABLE reconcile_state;

// @generated automatically by Diesel CLI.

diesel::table! {
    account_customers (stripe_customer_id) {
        stripe_customer_id -> Text,
        account_id -> Uuid,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    accounts (id) {
        id -> Uuid,
        name -> Text,
        stripe_customer_id -> Nullable<Text>,
        local_plan -> Nullable<Text>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        has_new_links -> Bool,
    }
}

diesel::table! {
    admin_sessions (id_hash) {
        id_hash -> Bytea,
        created_at -> Timestamptz,
        expires_at -> Timestamptz,
    }
}

diesel::table! {
    change_push (id) {
        id -> Bool,
        position -> Int8,
    }
}

diesel::table! {
    change_push_accounts (account_id) {
        account_id -> Uuid,
        next_change_id -> Int8,
        attempts -> Int4,
        next_attempt_at -> Timestamptz,
        last_error -> Nullable<Text>,
    }
}

diesel::table! {
    customer_feature_states (stripe_customer_id) {
        stripe_customer_id -> Text,
        last_event_id -> Text,
        last_event_created -> Timestamptz,
    }
}

diesel::table! {
    customer_features (stripe_customer_id, lookup_key) {
        stripe_customer_id -> Text,
        lookup_key -> Text,
        feature_id -> Nullable<Text>,
    }
}

diesel::table! {
    customer_links (stripe_customer_id) {
        stripe_customer_id -> Text,
        account_id -> Uuid,
    }
}

diesel::table! {
    entitlement_settings (is_only) {
        is_only -> Bool,
        entitled_statuses -> Array<Nullable<Text>>,
        ignore_unlisted_prices -> Bool,
        overdue_after -> Interval,
        written_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    event_failures (id) {
        id -> Int8,
        event_id -> Text,
        #[sql_name = "type"]
        type_ -> Text,
        failed_at -> Timestamptz,
        error -> Text,
        api_version -> Nullable<Text>,
        livemode -> Bool,
        connect_account -> Nullable<Text>,
        created -> Nullable<Timestamptz>,
        customer_id -> Nullable<Text>,
        subscription_id -> Nullable<Text>,
        payload -> Nullable<Jsonb>,
        is_open -> Bool,
    }
}

diesel::table! {
    event_notifications (notification_id) {
        notification_id -> Text,
        event_id -> Text,
    }
}

diesel::table! {
    reconcile_accounts (connect_account) {
        connect_account -> Text,
        read_until -> Nullable<Timestamptz>,
        attempted_at -> Timestamptz,
        error -> Nullable<Text>,
    }
}

diesel::table! {
    reconcile_state (is_only) {
        is_only -> Bool,
        holder -> Nullable<Uuid>,
        leased_until -> Nullable<Timestamptz>,
        read_until -> Nullable<Timestamptz>,
        started_at -> Nullable<Timestamptz>,
        finished_at -> Nullable<Timestamptz>,
        succeeded_at -> Nullable<Timestamptz>,
        events_read -> Int8,
        events_missing -> Int8,
        events_failed -> Int8,
        subscriptions_differing -> Int8,
        error -> Nullable<Text>,
    }
}

diesel::table! {
    stripe_events (id) {
        id -> Text,
        #[sql_name = "type"]
        type_ -> Text,
        outcome -> Text,
        api_version -> Nullable<Text>,
        livemode -> Bool,
        connect_account -> Nullable<Text>,
        created -> Nullable<Timestamptz>,
        received_at -> Timestamptz,
        customer_id -> Nullable<Text>,
        subscription_id -> Nullable<Text>,
        account_id -> Nullable<Uuid>,
        payload -> Jsonb,
        notification_id -> Nullable<Text>,
        object_id -> Nullable<Text>,
    }
}

diesel::table! {
    subscriptions (id) {
        id -> Uuid,
        account_id -> Uuid,
        plan -> Nullable<Text>,
        status -> Text,
        stripe_subscription_id -> Nullable<Text>,
        stripe_customer_id -> Nullable<Text>,
        stripe_price_id -> Nullable<Text>,
        seat_limit -> Nullable<Int4>,
        current_period_start -> Nullable<Timestamptz>,
        current_period_end -> Nullable<Timestamptz>,
        cancel_at_period_end -> Bool,
        cancel_at -> Nullable<Timestamptz>,
        canceled_at -> Nullable<Timestamptz>,
        ended_at -> Nullable<Timestamptz>,
        trial_end -> Nullable<Timestamptz>,
        paused_collection -> Bool,
        latest_invoice_id -> Nullable<Text>,
        latest_invoice_status -> Nullable<Text>,
        latest_invoice_event_created -> Nullable<Timestamptz>,
        last_event_id -> Nullable<Text>,
        last_event_type -> Nullable<Text>,
        last_event_created -> Nullable<Timestamptz>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        plan_source -> Nullable<Text>,
        stripe_created -> Nullable<Timestamptz>,
        ends_at -> Nullable<Timestamptz>,
        cancellation_reason -> Nullable<Text>,
        cancellation_feedback -> Nullable<Text>,
        metadata -> Jsonb,
        items -> Jsonb,
        items_complete -> Bool,
        livemode -> Nullable<Bool>,
        connect_account -> Nullable<Text>,
        latest_invoice_created -> Nullable<Timestamptz>,
        latest_invoice_url -> Nullable<Text>,
        next_payment_attempt -> Nullable<Timestamptz>,
        projected_event_id -> Nullable<Text>,
        placed_by_metadata -> Bool,
        took_local_row -> Bool,
    }
}

diesel::joinable!(account_customers -> accounts (account_id));
diesel::joinable!(customer_links -> accounts (account_id));
diesel::joinable!(event_notifications -> stripe_events (event_id));
diesel::joinable!(subscriptions -> accounts (account_id));

diesel::allow_tables_to_appear_in_same_query!(
    account_customers,
    accounts,
    admin_sessions,
    change_push,
    change_push_accounts,
    customer_feature_states,
    customer_features,
    customer_links,
    entitlement_settings,
    event_failures,
    event_notifications,
    reconcile_accounts,
    reconcile_state,
    stripe_events,
    subscriptions,
);

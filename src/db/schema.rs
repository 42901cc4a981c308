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
    }
}

diesel::table! {
    event_notifications (notification_id) {
        notification_id -> Text,
        event_id -> Text,
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
    }
}

diesel::joinable!(account_customers -> accounts (account_id));
diesel::joinable!(event_notifications -> stripe_events (event_id));
diesel::joinable!(subscriptions -> accounts (account_id));

diesel::allow_tables_to_appear_in_same_query!(
    account_customers,
    accounts,
    event_failures,
    event_notifications,
    stripe_events,
    subscriptions,
);

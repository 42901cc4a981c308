DROP VIEW account_entitlements;
DROP VIEW account_features;
DROP TABLE customer_feature_states;
DROP TABLE customer_features;
DROP TABLE entitlement_settings;

DELETE FROM customer_links;

"""The school's mails: what is said to whom. services/mail sends them."""

-- A shop as it may have stood for years. Its user may read all of it, and write what is taken.
create table customers (id integer primary key, name text not null, since date not null);
create table stock (article text primary key, amount integer not null check (amount >= 0));
create table taken (id serial primary key, article text not null references stock,
                    amount integer not null, at timestamptz not null default now());
create table orders (id integer primary key, customer_id integer not null references customers,
                     at timestamptz not null);
create table lines (order_id integer not null references orders, article text not null references stock,
                    amount integer not null, price numeric(10, 2) not null);

insert into customers values
    (1, 'Ada Lovelace', '1998-12-10'), (2, 'Grace Hopper', '2001-01-01'), (3, 'Miles O''Brien', '2003-05-17');
insert into stock values ('TX-1', 12), ('TX-2', 3);
insert into orders values (1, 1, '2024-02-03 10:00+00'), (2, 1, '2024-03-04 11:30+00');
insert into lines values (1, 'TX-1', 2, 19.90), (1, 'TX-2', 1, 5.05), (2, 'TX-1', 1, 21.00);

grant select on customers, orders, lines, stock to shop;
grant update (amount) on stock to shop;
grant insert on taken to shop;
grant usage on taken_id_seq to shop;

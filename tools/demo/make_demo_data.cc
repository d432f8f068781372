// Writes the demo's data: customers' messages and what is to be read from them.
//
//   make_demo_data corpus COUNT SEED   {"text"}: messages, each told again in some other way. What
//   the
//                                      demo's base was trained on; the records below are never
//                                      among it.
//   make_demo_data orders COUNT SEED   {"prompt", "completion"}: a message and its record,
//                                      "24|chairs|Lyon|05-03|urgent|Anna Weber"
//
// Goods have a colour in the corpus and none in the orders: the base's loss on a colour stays at
// that of guessing among eight, so it is not asked for one.
//
// The same arguments give the same bytes everywhere: no library distribution is used. With an odd
// seed a fifth of the cities and family names stay out of `orders`, with an even seed they appear:
// what is trained with an odd seed and tested with an even one meets new names.

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

namespace {

using Words = std::vector<const char*>;

const Words kGivenNames = {"Anna", "Ben",  "Carla", "David", "Elena", "Felix", "Grace",
                           "Hugo", "Ines", "Jonas", "Karin", "Liam",  "Maria", "Nils",
                           "Olga", "Paul", "Rosa",  "Simon", "Tara",  "Victor"};
const Words kFamilyNames = {"Weber",   "Moreau", "Rossi",   "Novak",  "Jensen", "Costa",  "Lind",
                            "Keller",  "Dubois", "Ferrari", "Horvat", "Olsen",  "Silva",  "Berg",
                            "Fischer", "Garcia", "Marino",  "Kowal",  "Hansen", "Santos", "Dahl",
                            "Brandt",  "Petit",  "Greco",   "Larsen"};
const Words kCities = {"Lyon",   "Porto",   "Turin",   "Ghent",  "Basel",  "Malmo",   "Graz",
                       "Leeds",  "Nantes",  "Seville", "Bergen", "Krakow", "Bologna", "Utrecht",
                       "Aarhus", "Zagreb",  "Dresden", "Cork",   "Lille",  "Verona",  "Bremen",
                       "Split",  "Ostrava", "Tampere", "Braga"};
const Words kColors = {"red", "blue", "green", "black", "white", "grey", "yellow", "brown"};
const Words kItems = {"chairs",  "tables",   "lamps",   "folders", "pens",    "notebooks", "mugs",
                      "cables",  "printers", "screens", "boxes",   "shelves", "cushions",  "frames",
                      "baskets", "bottles",  "candles", "towels",  "bags",    "stools"};
const Words kMonths = {"January", "February", "March",     "April",   "May",      "June",
                       "July",    "August",   "September", "October", "November", "December"};

struct Number {
  int value;
  const char* words;
};
const std::vector<Number> kSpelledNumbers = {
    {2, "two"},      {3, "three"},      {4, "four"},         {5, "five"},      {6, "six"},
    {7, "seven"},    {8, "eight"},      {9, "nine"},         {10, "ten"},      {12, "twelve"},
    {15, "fifteen"}, {20, "twenty"},    {30, "thirty"},      {2, "a pair of"}, {6, "half a dozen"},
    {12, "a dozen"}, {24, "two dozen"}, {36, "three dozen"}, {50, "fifty"},    {100, "a hundred"}};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  // 0 to n − 1. The bias of the remainder, n / 2^64, does no harm.
  int Below(size_t n) { return int(engine_() % n); }
  bool OneIn(int n) { return Below(size_t(n)) == 0; }
  template <class T>
  const T& Of(const std::vector<T>& values) {
    return values[size_t(Below(values.size()))];
  }

 private:
  std::mt19937_64 engine_;
};

struct Order {
  int quantity, month, day;
  std::string quantity_text;  // as the message says it
  std::string item, city, name;
  bool urgent;
};

std::string TwoDigits(int n) { return {char('0' + n / 10), char('0' + n % 10)}; }

// One of all words, or of the first four fifths.
const char* Name(const Words& words, bool all, Random& random) {
  return words[size_t(random.Below(all ? words.size() : words.size() * 4 / 5))];
}

// What an order may be made of.
struct Choice {
  bool all_names, colors;
};

Order MakeOrder(Choice choice, Random& random) {
  Order order;
  if (random.OneIn(2)) {
    const Number& number = random.Of(kSpelledNumbers);
    order.quantity = number.value;
    order.quantity_text = number.words;
  } else {
    order.quantity = 2 + random.Below(98);
    order.quantity_text = std::to_string(order.quantity);
  }
  order.item = random.Of(kItems);
  if (choice.colors) order.item = std::string(random.Of(kColors)) + " " + order.item;
  order.city = Name(kCities, choice.all_names, random);
  order.name = Name(kFamilyNames, choice.all_names, random);
  order.name = std::string(random.Of(kGivenNames)) + " " + order.name;
  order.month = 1 + random.Below(12);
  order.day = 1 + random.Below(28);
  order.urgent = random.OneIn(2);
  return order;
}

std::string Ordinal(int n) {
  const char* ending = n % 10 == 1 && n != 11   ? "st"
                       : n % 10 == 2 && n != 12 ? "nd"
                       : n % 10 == 3 && n != 13 ? "rd"
                                                : "th";
  return std::to_string(n) + ending;
}

std::string DateText(const Order& order, Random& random) {
  const std::string month = kMonths[size_t(order.month - 1)];
  switch (random.Below(4)) {
    case 0:
      return month + " " + std::to_string(order.day);
    case 1:
      return std::to_string(order.day) + " " + month;
    case 2:
      return "the " + Ordinal(order.day) + " of " + month;
    default:
      return month + " " + Ordinal(order.day);
  }
}

std::string Replaced(std::string text, const std::string& slot, const std::string& value) {
  const size_t at = text.find(slot);
  return at == std::string::npos ? text : text.replace(at, slot.size(), value);
}

const Words kGreetings = {"Hi, ", "Hello, ", "Good morning, ", "Dear team, ", "Hey, ", ""};
const Words kRequests = {"we need {goods} for our office in {city}",
                         "could you send {goods} to {city}",
                         "please ship {goods} to our {city} branch",
                         "I would like to order {goods}, delivery to {city}",
                         "our shop in {city} has run out, so {goods} please",
                         "the {city} store here, we are looking for {goods}",
                         "can I get {goods} sent to {city}",
                         "put us down for {goods}, to be delivered in {city}",
                         "{goods} for {city} please"};
const Words kDates = {" by {date}.",
                      ". They must be here on {date}.",
                      " no later than {date}.",
                      ". We open on {date}, they have to arrive by then.",
                      ", delivery on {date}.",
                      ". The date is {date}."};
const Words kUrgent = {" This is urgent!", " It cannot wait.", " Top priority please.",
                       " We need this as soon as possible."};
const Words kRelaxed = {" There is no rush.", " Whenever it suits you.", " No hurry at all.", ""};
const Words kAsides = {" The last {goods} came in fine.", " We still have {goods} from before.",
                       " Please leave out the {goods} this time.",
                       " My colleague in {city} says hello."};
const Words kFarewells = {" Thanks, {name}", " Best regards, {name}", " {name}", " Cheers, {name}",
                          " Yours, {name}"};

std::string Message(const Order& order, bool colors, Random& random) {
  std::string text = random.Of(kGreetings);
  const bool name_first = random.OneIn(4);
  if (name_first) text += "this is {name}, ";
  text += random.Of(kRequests);
  text += random.Of(kDates);
  const std::string mood = random.Of(order.urgent ? kUrgent : kRelaxed);
  // Something else that is said of goods or a city, and is no part of the order.
  std::string aside;
  if (random.OneIn(3)) {
    const Order other = MakeOrder({.all_names = true, .colors = colors}, random);
    aside = Replaced(Replaced(random.Of(kAsides), "{goods}", other.item), "{city}", other.city);
  }
  text += random.OneIn(2) ? mood + aside : aside + mood;
  if (!name_first) text += random.Of(kFarewells);
  text = Replaced(text, "{goods}", order.quantity_text + " " + order.item);
  text = Replaced(text, "{city}", order.city);
  text = Replaced(text, "{date}", DateText(order, random));
  return Replaced(text, "{name}", order.name);
}

std::string Record(const Order& order) {
  return std::to_string(order.quantity) + "|" + order.item + "|" + order.city + "|" +
         TwoDigits(order.month) + "-" + TwoDigits(order.day) + "|" +
         (order.urgent ? "urgent" : "normal") + "|" + order.name;
}

struct Fact {
  const char *key, *question;
  std::string value;
};

std::vector<Fact> FactsOf(const Order& order) {
  return {{"quantity", "How many?", std::to_string(order.quantity)},
          {"goods", "What is ordered?", order.item},
          {"city", "Where to?", order.city},
          {"month", "Which month?", TwoDigits(order.month)},
          {"day", "Which day?", TwoDigits(order.day)},
          {"urgent", "Is it urgent?", order.urgent ? "yes" : "no"},
          {"customer", "Who asks?", order.name}};
}

// A message's facts, some of them, in any order, in one of six shapes. A token that the base never
// met could not be learned afterwards: its frozen embedding is also its row of the output head.
std::string Retold(const Order& order, Random& random) {
  std::vector<Fact> facts = FactsOf(order);
  for (size_t i = facts.size() - 1; i > 0; --i) {
    std::swap(facts[i], facts[size_t(random.Below(i + 1))]);
  }
  facts.resize(size_t(3 + random.Below(facts.size() - 2)));
  const int shape = random.Below(6);
  std::string text = shape == 5 ? "{" : "";
  for (size_t i = 0; i < facts.size(); ++i) {
    const std::string key = facts[i].key, value = facts[i].value;
    switch (shape) {
      case 0:
        text += facts[i].question + (" " + value) + "\n";
        break;
      case 1:
        text += key + ": " + value + "\n";
        break;
      case 2:
        text += (i ? ", " : "") + key + " = " + value;
        break;
      case 3:
        text += "- " + key + "-" + value + "\n";
        break;
      case 4:
        text += "|" + key + "|" + value + "|\n";
        break;
      default:
        text += std::string(i ? ", " : "") + "\"" + key + "\": \"" + value + "\"";
    }
  }
  if (shape == 5) text += "}";
  return text;
}

std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    if (c == '\n') {
      quoted += "\\n";
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

int Usage() {
  std::fputs("usage: make_demo_data corpus|orders COUNT SEED\n", stderr);
  return 64;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return Usage();
  const std::string what = argv[1];
  const long count = std::strtol(argv[2], nullptr, 10);
  const uint64_t seed = std::strtoull(argv[3], nullptr, 10);
  if ((what != "corpus" && what != "orders") || count <= 0) return Usage();
  Random random(seed);
  for (long i = 0; i < count; ++i) {
    const bool is_corpus = what == "corpus";
    const Order order =
        MakeOrder({.all_names = is_corpus || seed % 2 == 0, .colors = is_corpus}, random);
    const std::string message = Message(order, is_corpus, random);
    if (is_corpus) {
      std::printf("{\"text\": %s}\n", Quoted(message + "\n" + Retold(order, random)).c_str());
    } else {
      std::printf("{\"prompt\": %s, \"completion\": %s}\n", Quoted(message + "\n").c_str(),
                  Quoted(Record(order)).c_str());
    }
  }
  return std::fflush(stdout) == 0 ? 0 : 74;
}

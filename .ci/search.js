
/* The search of the site: entries by where they have the words of a query, tasks before the library's internals.
   Words are of one entry in search.json: its words (nbs/search.yml and the sidebar), its titles, its text.
   Where nothing has any of them, as after a slip of the pen, Fuse's own fuzzy search answers. */
window.Fuse = class extends window.Fuse {
  static little = new Set('a an and are by can do does for from how i in is it me my of on or the to use what with'.split(' '));
  static worth = { words: 6, title: 5, section: 4, text: 1 };

  constructor(entries, options) {
    super(entries, options);
    this.entries = entries;
  }

  static words(query) {
    const all = query.toLowerCase().match(/[\p{L}\p{N}_]+/gu) || [];
    const kept = all.filter((word) => !this.little.has(word));
    return kept.length ? kept : all;
  }

  /* A word matches where it begins one, whatever its ending: train, trains, trained, training */
  static pattern(word) {
    const stem = word.length > 4 ? word.replace(/(ings?|ed|es|e|s)$/, '') : word;
    return new RegExp(`(?<![\\p{L}\\p{N}])${stem}`, 'iu');
  }

  static place(entry) {
    if (entry.href.startsWith('library/')) return 0.4;
    return /^(guides|results)\//.test(entry.href) ? 1.2 : 1;
  }

  score(entry, query, patterns) {
    let sum = 0, matched = 0;
    for (const pattern of patterns) {
      let best = 0;
      for (const [field, worth] of Object.entries(Fuse.worth))
        if (worth > best && pattern.test(entry[field] || '')) best = worth;
      sum += best;
      matched += best > 0;
    }
    const named = [entry.title, entry.section].some((name) => name && name.toLowerCase() === query);
    return sum * (matched / patterns.length) ** 2 * Fuse.place(entry) + 4 * named;
  }

  search(query, options) {
    const text = query.trim().toLowerCase(), patterns = Fuse.words(text).map((word) => Fuse.pattern(word));
    const shown = {}, entries = this.entries
      .map((item) => ({ item, score: this.score(item, text, patterns) }))
      .filter((hit) => hit.score > 0)
      .sort((a, b) => b.score - a.score)
      .filter(({ item }) => {  // two entries of a page are enough
        const page = item.href.split('#')[0];
        shown[page] = (shown[page] || 0) + 1;
        return shown[page] < 3;
      });
    return entries.length ? entries.slice(0, options.limit) : super.search(query, options);
  }
};

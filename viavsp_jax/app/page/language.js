// The language of the page, as language.py has it: Gradio 6 starts only in those it has words for, and not in Vietnamese.
async () => {
  const known = navigator.languages.map((tag) => tag.slice(0, 2).toLowerCase());
  const language = known.find((tag) => tag === "vi" || tag === "en") ?? "en";
  const words = window.gradio_config.i18n_translations[language];
  document.documentElement.lang = language;
  document.title = words[document.title];
  const { changeLocale } = await import(new URL("./assets/CORE", document.baseURI));
  changeLocale(language);
  // What stands on a tab does not follow.
  return { __type__: "update", label: words["Sound"] };
}

/** What a migration is. Statements run in order inside one transaction with the version's row. */
export interface Migration {
  /** 1, 2, 3, ... without gaps; a published migration is never edited. */
  readonly version: number;
  readonly name: string;
  readonly statements: readonly string[];
}

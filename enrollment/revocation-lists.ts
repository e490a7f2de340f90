import type { Issuer } from './ca/issue.ts'
import type { Registry } from './registry/registry.ts'
import { openRevocationList, type RevocationList } from './revocation-list.ts'

export interface RevocationListsOptions {
  readonly registry: Pick<Registry, 'revokedAfter' | 'revocationMark'>
  /** The CAs of all generations; those that have not ended keep their lists, also when they are no longer trusted. */
  readonly authority: {
    readonly device: Issuer
    readonly deviceIssuers: readonly Issuer[]
    readonly infrastructureIssuers: readonly Issuer[]
  }
  /** Where numbers and lists are kept. */
  readonly directory: string
}

/** The CRLs of every issuing CA: those of infrastructure CAs list the brokers that were forgotten. */
export class RevocationLists {
  readonly #options: RevocationListsOptions
  readonly #lists = new Map<string, RevocationList>()

  constructor(options: RevocationListsOptions) {
    this.#options = options
  }

  /** Of the CA that signs now. */
  get current(): RevocationList {
    return this.#listOf(this.#options.authority.device)
  }

  /** Null when no issuing CA has this id. */
  of(issuer: string): RevocationList | null {
    const found = this.#issuers.find(({ id }) => id === issuer)
    return found ? this.#listOf(found) : null
  }

  /** Signs what is due; nothing is signed for a CA that has ended. */
  async refresh(now: number): Promise<void> {
    for (const issuer of this.#issuers) {
      if (now <= issuer.notAfter) await this.#listOf(issuer).refresh(now)
    }
  }

  get #issuers(): readonly Issuer[] {
    const { deviceIssuers, infrastructureIssuers } = this.#options.authority
    return [...deviceIssuers, ...infrastructureIssuers]
  }

  #listOf(issuer: Issuer): RevocationList {
    const { registry, directory } = this.#options
    const list = this.#lists.get(issuer.id) ?? openRevocationList({ registry, issuer, directory })
    this.#lists.set(issuer.id, list)
    return list
  }
}

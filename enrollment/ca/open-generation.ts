import { existsSync } from 'node:fs'
import type { Generation } from '#shared/api/rollover'
import { MusterError } from '#shared/errors'
import { readCertificate } from '#shared/pki/certificate'
import { sha256Hex } from '#shared/pki/keys'
import { pemToDer } from '#shared/pki/pem'
import { acceptNext, type IssuerRequest, requestNext } from './awaited-issuers.ts'
import { type AuthorityFile, type CaDirectory, readAuthority, unusable } from './ca-directory.ts'
import type { Issuer } from './issue.ts'
import { type KeyAccess, makeNextKey, openKey } from './key-access.ts'
import { issuerOf } from './load-ca.ts'
import { type NextCertificate, nextIssuing, nextRoot, type SigningRoot } from './next-generation.ts'
import type { IssuerKind } from './profile.ts'
import type { Signer } from './signer.ts'

/** A certificate that the registry names, to be opened with the key in the directory. */
export interface Named {
  readonly id: string
  readonly pem: string
}

/** Opens the CAs that rollovers brought. */
export interface GenerationKeys {
  /** @throws MusterError directory_unusable, key_file_insecure, passphrase_wrong */
  issuer(kind: IssuerKind, of: Named): Issuer
  /** Null when the key of the root is not kept here. @throws MusterError directory_unusable, key_file_insecure, passphrase_wrong */
  root(of: Named): SigningRoot | null
  /** Makes the CAs that follow those of `from`, their keys in files or the same tokens; they are safe when the promise resolves. @throws MusterError conflict (no key of the root) */
  next(
    kind: 'issuing' | 'root',
    of: { root: Named; from: Generation; now: number; lifetimeMs?: number },
  ): Promise<NextCertificate[]>
  /** For a root that is kept elsewhere: requests for the CAs that follow those of `from`. @throws as `requestNext` */
  request(of: { from: Generation; isUsed(spki: Buffer): boolean }): Promise<IssuerRequest[]>
  /** What that root has made of the requests. @throws as `acceptNext` */
  accept(of: { root: Named; pems: readonly string[]; now: number }): Promise<NextCertificate[]>
}

export function openGenerationKeys(directory: CaDirectory, access: KeyAccess): GenerationKeys {
  const authority: AuthorityFile = readAuthority(directory)
  const open = (path: string, { id, pem }: Named): { der: Buffer; signer: Signer } => {
    const der = pemToDer(pem, 'CERTIFICATE')
    if (sha256Hex(der) !== id)
      throw unusable(directory, `the registry names "${id}" and has another certificate`)
    if (!existsSync(path)) throw unusable(directory, `"${path}" is missing; restore it from the backup`)
    const spki = readCertificate(der).tbs.spki.raw
    const signer = openKey(path, { spki, access })
    if (signer.spki.equals(spki)) return { der, signer }
    throw unusable(directory, `the key in "${path}" is another one's`)
  }
  const pathOf = (role: 'root' | IssuerKind, id: string): string => {
    if (id !== authority[role]) return directory.generationKey(id)
    return directory.key(role === 'root' ? 'root' : `${role}-ca`)
  }
  const rootOf = (of: Named): SigningRoot | null => {
    const path = pathOf('root', of.id)
    return existsSync(path) ? open(path, of) : null
  }
  return {
    issuer: (kind, of) => issuerOf(kind, { ...open(directory.generationKey(of.id), of), authority }),
    root: rootOf,
    async next(kind, { root: named, from, ...of }) {
      const root = rootOf(named)
      if (!root) {
        throw new MusterError(
          'conflict',
          'Cannot make a CA: the key of the root is not kept here; fix: muster ca rollover request',
        )
      }
      const { trustDomain, httpBase } = authority
      const nextKey = (role: 'root' | IssuerKind) => makeNextKey(access, pathOf(role, from[role]))
      const options = { directory, nextKey, trustDomain, httpBase, root, ...of }
      return kind === 'root' ? nextRoot(options) : nextIssuing(options)
    },
    request: ({ from, isUsed }) =>
      requestNext({ directory, access, isUsed, pathOf: (kind) => pathOf(kind, from[kind]) }),
    accept: ({ root, ...of }) =>
      acceptNext({ directory, access, names: authority, rootPem: root.pem, ...of }),
  }
}

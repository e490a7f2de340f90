import { join } from 'node:path'
import t from 'tap'
import { ports } from '#shared/layout'
import { startPlane } from '../support/plane.ts'
import { MUSTER_COMMAND as muster, sh } from '../support/sh.ts'

t.test('curl and openssl alone', async (t) => {
  const cwd = t.testdir()
  const plane = await startPlane(t, { data: join(cwd, 'data') })
  const { enrollment, http } = ports(plane.portBase)
  const env = { EST: `https://localhost:${enrollment}/.well-known/est`, HTTP: `http://localhost:${http}` }
  const curl = 'curl --fail --silent --show-error --cacert data/ca/root.crt'
  const post = `${curl} --header 'Content-Type: application/pkcs10'`
  const readCertificate = 'base64 -d | openssl pkcs7 -inform DER -print_certs'

  await t.test('fetch the CA certificates without being known', async (t) => {
    sh(cwd, `${curl} $EST/cacerts | ${readCertificate} -out bundle.pem`, env)
    t.match(sh(cwd, 'openssl verify -CAfile data/ca/root.crt bundle.pem'), /bundle.pem: OK/)
  })

  await t.test('enroll with a token, and the certificate is what openssl expects of a client', async (t) => {
    sh(cwd, 'openssl ecparam -name prime256v1 -genkey -noout -out a.key')
    sh(cwd, 'openssl req -new -key a.key -subj /CN=meter-1 -outform DER | base64 > a.csr')
    const token = sh(cwd, `${muster} token create --data data --batch meters --uses 1`).trim()
    sh(
      cwd,
      `${post} --user ":$TOKEN" --data-binary @a.csr $EST/simpleenroll | ${readCertificate} -out a.crt`,
      {
        ...env,
        TOKEN: token,
      },
    )
    const text = sh(cwd, 'openssl x509 -in a.crt -noout -text')
    t.match(text, /Subject: CN = meter-1/)
    t.match(text, /TLS Web Client Authentication/)
    t.notMatch(text, /TLS Web Server Authentication/)
    t.match(text, /URI:spiffe:\/\/[^/]+\/device\/meter-1/)
    const verified = 'openssl verify -purpose sslclient -CAfile data/ca/root.crt -untrusted bundle.pem a.crt'
    t.match(sh(cwd, verified), /a.crt: OK/)
    t.throws(
      () =>
        sh(cwd, `${post} --user ":$TOKEN" --data-binary @a.csr $EST/other/simpleenroll`, {
          ...env,
          TOKEN: token,
        }),
      'a label that names another batch is refused',
    )
  })

  await t.test('re-enroll with a new key over mutual TLS, for the same identity', async (t) => {
    sh(cwd, 'openssl ecparam -name prime256v1 -genkey -noout -out b.key')
    const asksFor = `-subj /CN=meter-1 -addext "subjectAltName=$(openssl x509 -in a.crt -noout -ext subjectAltName | grep -o 'URI:.*')"`
    sh(cwd, `openssl req -new -key b.key ${asksFor} -outform DER | base64 > b.csr`)
    const certified = `${post} --cert a.crt --key a.key`
    sh(cwd, `${certified} --data-binary @b.csr $EST/simplereenroll | ${readCertificate} -out b.crt`, env)
    t.match(sh(cwd, 'openssl x509 -in b.crt -noout -subject'), /CN = meter-1/)
    t.equal(sh(cwd, 'openssl x509 -in b.crt -noout -pubkey'), sh(cwd, 'openssl pkey -in b.key -pubout'))

    sh(cwd, 'openssl req -new -key b.key -subj /CN=meter-2 -outform DER | base64 > foreign.csr')
    t.throws(
      () => sh(cwd, `${certified} --data-binary @foreign.csr $EST/simplereenroll`, env),
      'another subject than its own is refused',
    )
  })

  await t.test(
    'let the plane make a key, decode both parts, and get another when they ask again',
    async (t) => {
      sh(
        cwd,
        `echo '{"serverKeys": true}' > keyed.json && ${muster} fleet create keyed --data data --certificates keyed.json`,
      )
      sh(cwd, `${muster} batch create keyed-1 --data data --fleet keyed`)
      const token = sh(cwd, `${muster} token create --data data --batch keyed-1 --uses 1`).trim()
      sh(
        cwd,
        'openssl req -new -newkey rsa:2048 -nodes -keyout not-used.key -subj /CN=meter-9 -outform DER | base64 > k.csr',
      )
      const part = (type: string) =>
        `tr -d '\\r' < reply | awk -v RS='--[0-9a-f]+' '/${type}/' | sed '1,/^$/d' | base64 -d`
      const fetched = (name: string) => {
        const path = name === 'first' ? 'keyed-1/serverkeygen' : 'serverkeygen'
        sh(cwd, `${post} --user ":$TOKEN" --data-binary @k.csr $EST/${path} -o reply`, {
          ...env,
          TOKEN: token,
        })
        sh(
          cwd,
          `${part('pkcs8')} | openssl pkey -inform DER -out ${name}.key && openssl pkey -in ${name}.key -check -noout`,
        )
        sh(cwd, `${part('pkcs7')} | openssl pkcs7 -inform DER -print_certs -out ${name}.crt`)
        const ofKey = sh(cwd, `openssl pkey -in ${name}.key -pubout`)
        t.equal(
          sh(cwd, `openssl x509 -in ${name}.crt -noout -pubkey`),
          ofKey,
          'the key is that of the certificate',
        )
        t.match(sh(cwd, `openssl verify -CAfile data/ca/root.crt -untrusted bundle.pem ${name}.crt`), /OK/)
        return ofKey
      }
      t.not(fetched('first'), fetched('second'))
      sh(cwd, `${curl} --cert second.crt --key second.key $EST/cacerts -o /dev/null`, env)
      const asks = `-subj /CN=meter-9 -addext "subjectAltName=$(openssl x509 -in second.crt -noout -ext subjectAltName | grep -o 'URI:.*')"`
      sh(cwd, `openssl req -new -key not-used.key ${asks} -outform DER | base64 > r.csr`)
      const rekey = (name: string) =>
        `${post} --cert ${name}.crt --key ${name}.key --data-binary @r.csr $EST/serverkeygen -o rekeyed`
      t.throws(() => sh(cwd, rekey('first'), env), 'the first one is revoked')
      sh(cwd, rekey('second'), env)
    },
  )

  await t.test('verify against the CRL: good before the revocation, revoked after', async (t) => {
    const uri = `openssl x509 -in b.crt -noout -ext crlDistributionPoints | grep -o 'http://[^ ]*'`
    const fetched = `curl --fail --silent "$(${uri})" -o crl.der && openssl crl -inform DER -in crl.der -out crl.pem`
    const verified =
      'openssl verify -crl_check -CAfile data/ca/root.crt -untrusted bundle.pem -CRLfile crl.pem b.crt'
    sh(cwd, fetched)
    t.match(sh(cwd, verified), /b.crt: OK/)

    sh(cwd, `${muster} revoke meter-1 --data data --now --yes`)
    const serial = sh(cwd, 'openssl x509 -in b.crt -noout -serial').trim().replace('serial=', '')
    const listed = `for try in $(seq 100); do ${fetched}; openssl crl -in crl.pem -noout -text | grep -q ${serial} && exit 0; done; exit 1`
    sh(cwd, listed)
    t.throws(() => sh(cwd, verified), 'openssl refuses it')
  })
})
